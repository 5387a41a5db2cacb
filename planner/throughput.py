"""How fast a run is and how long it takes, from its arithmetic and the device's data sheet."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from planner import constants as c
from planner.catalogue import gpus
from planner.devices import Device
from planner.memory.adapters import FACTORISED, trained_parameters, trained_width, trains_head
from planner.memory.backend import TUNEWRIGHT, Backend
from planner.memory.decoder import DTYPE_BYTES
from planner.memory.layers import layers_memory
from planner.model.spec import ALL_LINEAR, ModelSpec
from planner.schedule import evaluations
from planner.setup import VARLEN_FLASH, Hyperparameters, InitLoraWeights, Method, TrainingSetup
from planner.statistics import DatasetStatistics


@dataclass(frozen=True)
class SpeedCalibration:
    """What finished runs make of the predicted time of a step. The default leaves it as it is."""

    ratio: float = 1.0  # measured over predicted seconds
    runs: int = 0  # that it was learned from


AS_PREDICTED = SpeedCalibration()


@dataclass(frozen=True)
class SpeedEstimate:
    """Predicted speed and time of one run."""

    tokens_per_second: float  # non-padding tokens while training
    flops_per_token: float  # of the training step
    step_seconds: float  # one optimizer step
    total_steps: int
    loading_seconds: float
    training_seconds: float
    evaluation_seconds: float
    sampling_seconds: float  # answers to held-out prompts, before and after
    export_seconds: float  # writing the result and checking it in a fresh process
    pace: SpeedCalibration = AS_PREDICTED  # by what finished runs measured; already in speed and seconds

    @property
    def seconds(self) -> float:
        """From the start of the process to the verified export."""
        return (
            self.loading_seconds
            + self.training_seconds
            + self.evaluation_seconds
            + self.sampling_seconds
            + self.export_seconds
        )

    @property
    def unpaced_step_seconds(self) -> float:
        """`step_seconds` before any correction."""
        return self.step_seconds / self.pace.ratio

    def paced(self, pace: SpeedCalibration) -> "SpeedEstimate":
        """This estimate, not corrected yet, as finished runs would have it. What is not steps stays as it is."""
        return replace(
            self,
            tokens_per_second=self.tokens_per_second / pace.ratio,
            step_seconds=self.step_seconds * pace.ratio,
            training_seconds=self.training_seconds * pace.ratio,
            evaluation_seconds=self.evaluation_seconds * pace.ratio,
            pace=pace,
        )


@dataclass(frozen=True)
class Answering:
    """Held-out prompts that a run answers before training and after: how many at most, and tokens of an answer."""

    rows: int = c.SAMPLE_ROWS
    tokens: int = c.SAMPLE_TOKENS


SAMPLES = Answering()


@dataclass(frozen=True)
class DeviceRates:
    """What a device sustains."""

    flops: float  # per second in the format it computes in, before utilisation
    bandwidth_bytes: float  # per second
    utilisation: float  # of `flops`, in large matrix products


def device_rates(device: Device) -> DeviceRates:
    """Rates from the catalogue, by device class; a MIG slice has its share of its card's, and a GPU that is only a
    size counts as a modest one."""
    if device.kind == "cpu":
        cores = device.cores or 1
        per_core = c.CPU_FLOPS_PER_CORE if device.multiplies_bfloat16 else c.CPU_FLOAT32_FLOPS_PER_CORE
        return DeviceRates(per_core * cores, float("inf"), 1.0)
    unknown = DeviceRates(c.UNKNOWN_GPU_FLOPS, c.UNKNOWN_GPU_BANDWIDTH, c.MATRIX_UTILISATION)
    rates = _rates_by_class().get(device.card_class or device.device_class, unknown)
    share = device.card_share
    return replace(rates, flops=share * rates.flops, bandwidth_bytes=share * rates.bandwidth_bytes)


@lru_cache(maxsize=1)
def _rates_by_class() -> dict[str, DeviceRates]:
    return {
        f"nvidia-{gpu.id}": DeviceRates(gpu.bf16_flops, gpu.bandwidth_bytes, c.MATRIX_UTILISATION) for gpu in gpus()
    }


def flops_per_token(spec: ModelSpec, setup: TrainingSetup, length: float) -> float:
    """FLOPs of training one token of a row of `length` tokens.

    Two per active weight for each of: forward, the gradient of the input, the gradient of the weight (full
    fine-tuning only) and the recomputation; adapters pay all of the first three. Attention's two products cost
    4 x length x width forward, halved by causality, twice that backward (Kaplan et al. 2020, table 1).
    """
    recomputed = 1 if setup.gradient_checkpointing else 0
    passes = 2 + (1 if setup.method is Method.FULL else 0) + recomputed
    adapters = projection = 0.0
    if setup.method is not Method.FULL:
        adapters = _active_adapter_parameters(spec, setup)
        projection = 2.0 * spec.embedding_parameters if trains_head(spec, setup) else 0.0  # its weight's gradient
    attended = sum(
        group.count * (min(length, spec.sliding_window or length) if group.windowed else length)
        for group in spec.groups
    )
    attention = 2 * attended * spec.num_attention_heads * spec.head_dim
    products = 2.0 * adapters * (3 + recomputed) + attention * (3 + recomputed) + projection
    return 2.0 * spec.active_parameters * passes + products


def _active_adapter_parameters(spec: ModelSpec, setup: TrainingSetup) -> float:
    rank, targets = setup.lora_rank or 0, setup.lora_target_modules or (ALL_LINEAR,)
    started = 2 if setup.init_lora_weights in FACTORISED else 1  # what was trained, and what it started from
    total = started * float(spec.lora_parameters(rank, targets))
    if spec.expert_parameters:  # of an expert's adapters one token meets only its own
        share = next(g.experts.per_token / g.experts.count for g in spec.groups if g.experts)
        return total * share
    return total


def tokens_per_second(
    spec: ModelSpec, setup: TrainingSetup, device: Device, length: float, backend: Backend = TUNEWRIGHT
) -> float:
    """Tokens through forward and backward per second, the optimizer's step left out.

    Matrix products at the device's utilisation, small operators at its bandwidth, and never faster than Python
    launches kernels.
    """
    rates = device_rates(device)
    seconds = flops_per_token(spec, setup, length) / (rates.flops * rates.utilisation)
    if device.kind == "cpu":
        return 1 / (seconds * (c.CPU_EXPERTS_PENALTY if spec.expert_parameters else 1.0))
    step = backend.profile(setup, spec.model_type, False)
    batch, longest = setup.micro_sequences, setup.max_length
    passes = 4 / 3 if setup.gradient_checkpointing else 1.0
    rows = batch * length
    if spec.is_introspected:
        activations, copies = batch * longest * _unrecorded_bytes_per_token(spec, setup), 0
    else:
        layers = layers_memory(spec, setup, step)
        activations = sum(count * (layer.saved_bytes - layer.weight_copies_bytes) for count, layer in layers)
        copies = sum(count * layer.weight_copies_bytes for count, layer in layers)
    seconds += activations / (batch * longest) * c.ELEMENTWISE_TRAFFIC * passes / rates.bandwidth_bytes
    seconds += copies * c.WEIGHT_COPY_TRAFFIC * passes / rates.bandwidth_bytes / rows
    if setup.method is Method.QLORA:  # every weight is read in 4 bits and written and read in 16, each pass
        moved = spec.quantizable_parameters * (0.5 + 2 * DTYPE_BYTES[setup.dtype])
        seconds += moved * (2 + (passes > 1)) / rates.bandwidth_bytes / rows
    return 1 / max(seconds, spec.num_hidden_layers * c.LAUNCH_SECONDS_PER_LAYER * passes / rows)


def _unrecorded_bytes_per_token(spec: ModelSpec, setup: TrainingSetup) -> int:
    """What layers of an unknown family keep of a token: each projection its output, two norms their input in float32,
    and the activation between two of them."""
    width = DTYPE_BYTES[setup.dtype]
    outputs = sum(group.count * linear.out_features for group in spec.groups for linear in group.linears)
    return outputs * width + spec.num_hidden_layers * spec.hidden_size * (2 * 4 + 2 * width)


def estimate_speed(
    spec: ModelSpec,
    setup: TrainingSetup,
    device: Device,
    statistics: DatasetStatistics,
    hyperparameters: Hyperparameters,
    answering: Answering = SAMPLES,
) -> SpeedEstimate:
    """Time of the whole run over this data set: loading, training, evaluation, answers, export and its check."""
    tokens = truncated_tokens(statistics, setup.max_length)
    examples = max(1, statistics.examples)
    held_out = held_out_examples(statistics, hyperparameters)
    own_validation = statistics.validation_examples == 0
    share = (examples - held_out) / examples if own_validation else 1.0
    evaluated = tokens * (1 - share) if own_validation else _evaluated_tokens(statistics)
    answered = replace(answering, rows=min(answering.rows, held_out or statistics.validation_examples))
    mean_length = max(1.0, tokens / examples)
    row_length = setup.max_length if setup.packing else mean_length
    rate = tokens_per_second(spec, setup, device, row_length) * _useful_share(setup, device)
    steps = total_steps(statistics, setup, hyperparameters)
    trained = tokens * share * hyperparameters.n_epochs
    optimizer = steps * _optimizer_seconds(spec, setup, device)
    training = trained / rate + optimizer
    work = flops_per_token(spec, setup, row_length)
    forward = rate * work / (2.0 * spec.active_parameters)
    return SpeedEstimate(
        tokens_per_second=trained / training if training else rate,
        flops_per_token=work,
        step_seconds=training / max(1, steps),
        total_steps=steps,
        loading_seconds=_loading_seconds(spec, setup, device) + _starting_seconds(spec, setup, device),
        training_seconds=training,
        evaluation_seconds=(evaluations(hyperparameters.n_epochs) + _measured_again(setup)) * evaluated / forward,
        sampling_seconds=_sampling_seconds(spec, setup, device, answered),
        export_seconds=c.VERIFY_SECONDS + _reloading_seconds(spec, setup, device),
    )


def truncated_tokens(statistics: DatasetStatistics, max_length: int) -> float:
    """Tokens of one pass over the data set with every example cut at `max_length`."""
    if statistics.longest <= max_length:
        return float(statistics.tokens)
    whole = sum(statistics.token_lengths)
    if not whole:
        return float(min(statistics.tokens, statistics.examples * max_length))
    kept = sum(min(length, max_length) for length in statistics.token_lengths)
    return statistics.tokens * kept / whole


def held_out_examples(statistics: DatasetStatistics, hyperparameters: Hyperparameters) -> int:
    """Examples that are evaluated and not trained; none of the training file where a validation file is given."""
    if statistics.validation_examples:
        return 0
    return max(0, min(hyperparameters.held_out_rows, statistics.examples - 1))


def _evaluated_tokens(statistics: DatasetStatistics) -> float:
    """Tokens of the rows of a validation file that are evaluated."""
    rows = statistics.validation_examples
    return statistics.validation_tokens * min(rows, c.MOST_HELD_OUT) / rows


def packed_rows(statistics: DatasetStatistics, length: int, share: float = 1.0) -> int:
    """Rows of `length` tokens that a share of the examples fill when they are packed."""
    tokens = truncated_tokens(statistics, length) * share
    return max(1, math.ceil(tokens / (length * (1 - c.PACKING_SHARE))))


def total_steps(statistics: DatasetStatistics, setup: TrainingSetup, hyperparameters: Hyperparameters) -> int:
    """Optimizer steps of the whole run."""
    rows = statistics.examples - held_out_examples(statistics, hyperparameters)
    if setup.packing:
        rows = packed_rows(statistics, setup.max_length, share=rows / max(1, statistics.examples))
    return max(1, -(-rows // setup.effective_batch_size)) * hyperparameters.n_epochs


def _useful_share(setup: TrainingSetup, device: Device) -> float:
    if setup.packing:
        return 1 - c.PACKING_SHARE
    flat = device.kind == "cpu" or setup.attn_implementation == VARLEN_FLASH  # laid end to end
    if flat or setup.micro_sequences == 1:
        return 1.0
    return 1 - c.PADDING_SHARE


def _optimizer_seconds(spec: ModelSpec, setup: TrainingSetup, device: Device) -> float:
    bandwidth = c.CPU_GENERATION_BYTES if device.kind == "cpu" else device_rates(device).bandwidth_bytes
    return trained_parameters(spec, setup) * trained_width(setup) * c.OPTIMIZER_PASSES / bandwidth


def _loading_seconds(spec: ModelSpec, setup: TrainingSetup, device: Device) -> float:
    weights = spec.parameters * DTYPE_BYTES[setup.dtype]
    on_cpu = device.kind == "cpu"
    seconds = c.START_SECONDS + weights / (c.CPU_LOAD_BYTES if on_cpu else c.GPU_LOAD_BYTES)
    if setup.method is Method.QLORA:
        seconds += weights / (c.CPU_QUANTIZE_BYTES if on_cpu else c.QUANTIZE_BYTES)
    return seconds


def _measured_again(setup: TrainingSetup) -> int:
    """Passes over the held-out rows on the 16-bit base, of an adapter that was trained on a 4-bit one."""
    return 1 if setup.method is Method.QLORA else 0


def _reloading_seconds(spec: ModelSpec, setup: TrainingSetup, device: Device) -> float:
    """Time until the export is loaded in the process that proves it, and on the base in 16 bits where it is measured
    there too."""
    seconds = _loading_seconds(spec, setup, device) - c.START_SECONDS
    if _measured_again(setup):
        seconds += (
            spec.parameters
            * DTYPE_BYTES[setup.dtype]
            / (c.CPU_LOAD_BYTES if device.kind == "cpu" else c.GPU_LOAD_BYTES)
        )
    return seconds


def _starting_seconds(spec: ModelSpec, setup: TrainingSetup, device: Device) -> float:
    """Time until adapters stand where they start: PiSSA decomposes every adapted weight, others take next to none."""
    if setup.method is Method.FULL or setup.init_lora_weights is not InitLoraWeights.PISSA:
        return 0.0
    targets = setup.lora_target_modules or (ALL_LINEAR,)
    weights = c.PISSA_PRODUCTS * sum(count * linear.weight_parameters for count, linear in spec.targeted(targets))
    if device.kind == "cpu":
        return 2 * weights * (setup.lora_rank or 0) / (c.CPU_PISSA_FLOPS_PER_CORE * (device.cores or 1))
    return weights * 4 / device_rates(device).bandwidth_bytes  # read in float32 for a few columns


def _sampling_seconds(spec: ModelSpec, setup: TrainingSetup, device: Device, answering: Answering) -> float:
    """Answers before and after are decoded batch by batch, each as long as it may be; a token of a whole batch reads
    all weights once."""
    decoded = 2 * -(-answering.rows // c.ANSWERED_AT_ONCE) * answering.tokens
    read = decoded * spec.active_parameters * DTYPE_BYTES[setup.dtype]
    if device.kind == "cpu":
        return read / c.CPU_GENERATION_BYTES
    launches = decoded * spec.num_hidden_layers * c.LAUNCH_SECONDS_PER_LAYER
    return max(launches, read / device_rates(device).bandwidth_bytes)
