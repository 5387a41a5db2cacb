"""Peak memory of a training step, added up from what its operators allocate.

Derivations and sources of every term: `docs/planner.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner import constants as c
from planner.devices import Device
from planner.errors import InvalidSetupError
from planner.memory.adapters import (
    FACTORISED,
    adapter_parameters,
    check_adapter,
    kept_bytes,
    trained_parameters,
    trained_width,
    trains_embedding,
    trains_head,
)
from planner.memory.backend import TUNEWRIGHT, Backend
from planner.memory.decoder import DTYPE_BYTES, FLOAT32_BYTES
from planner.memory.layers import LayerMemory, layers_memory
from planner.memory.losses import LossPhase
from planner.memory.optimizers import optimizer_named
from planner.memory.step_profile import StepProfile
from planner.model.spec import ALL_LINEAR, ModelSpec
from planner.setup import Method, TrainingSetup

HOPPER = (9, 0)  # compute capability from which cuBLAS takes larger workspaces


@dataclass(frozen=True)
class Correction:
    """What finished runs make of an estimate. The default leaves it and its shipped bound as they are."""

    ratio: float = 1.0  # measured over predicted
    bound_share: float | None = None  # of the corrected prediction; None keeps the shipped bound
    runs: int = 0  # that it was learned from


NO_CORRECTION = Correction()


@dataclass(frozen=True)
class MemoryEstimate:
    """Device memory of a run, term by term, in bytes. On a CPU the resident set of the training process."""

    base_weights_bytes: int
    adapters_bytes: int
    gradients_bytes: int  # all of them, present together at the end of a backward pass
    optimizer_state_bytes: int
    inputs_bytes: int  # token ids, labels, positions
    library_workspaces_bytes: int
    saved_activations_bytes: int  # kept by the forward pass: all of it, or one input per layer with checkpointing
    loss_phase_bytes: int  # on top of the saved activations
    recompute_phase_bytes: int  # one layer's backward on top of the saved activations
    optimizer_step_bytes: int  # temporaries of the step
    dequantization_workspace_bytes: int  # the largest weight dequantized for one product; within the recompute phase
    context_bytes: int  # CUDA context and kernels; on a CPU the process before any model is loaded
    load_transient_bytes: int  # above the base weights while they are loaded
    allocator_slack_bytes: int
    static_allocated_bytes: int  # between steps
    peak_allocated_bytes: int
    device_bytes: int  # what the driver, or the kernel for a CPU, reports
    bound_bytes: int  # kept free on top, so that a plan that fits does fit
    evaluation_phase_bytes: int = 0  # scoring held-out examples, on top of what stays between steps
    saving_phase_bytes: int = 0  # proving the export in a process of its own, on top of the base weights
    correction: Correction = NO_CORRECTION  # by what finished runs measured; already in device_bytes and bound_bytes

    @property
    def required_bytes(self) -> int:
        """What must be free for the run to be allowed: the predicted use and its bound."""
        return self.device_bytes + self.bound_bytes

    @property
    def uncorrected_bytes(self) -> int:
        """`device_bytes` before any correction."""
        return round(self.device_bytes / self.correction.ratio)

    def corrected(self, correction: "Correction") -> "MemoryEstimate":
        """This estimate, not corrected yet, as finished runs would have it."""
        if correction == NO_CORRECTION:
            return self
        device_bytes = round(self.device_bytes * correction.ratio)
        share = correction.bound_share
        bound = self.bound_bytes if share is None else math.ceil(device_bytes * share)
        return replace(self, device_bytes=device_bytes, bound_bytes=bound, correction=correction)


def estimate_memory(
    spec: ModelSpec, setup: TrainingSetup, device: Device | None = None, backend: Backend = TUNEWRIGHT
) -> MemoryEstimate:
    """Memory of training `spec` as `setup` says, on `device` (an Ampere GPU when None).

    Raises InvalidSetupError where the setup contradicts itself or names what the planner does not model.
    """
    check_setup(spec, setup)
    estimate = _estimate(spec, setup, device, backend)
    if device is None or device.kind != "cpu" or setup.max_length <= c.LONGEST_PLAIN_ATTENTION:
        return estimate
    # Micro-batches whose rows are all short keep the scores that longer ones do not: the larger of the two counts.
    short = _estimate(spec, replace(setup, max_length=c.LONGEST_PLAIN_ATTENTION), device, backend)
    return max(estimate, short, key=lambda one: one.required_bytes)


def _estimate(spec: ModelSpec, setup: TrainingSetup, device: Device | None, backend: Backend) -> MemoryEstimate:
    on_cpu = device is not None and device.kind == "cpu"
    step = backend.profile(setup, spec.model_type, on_cpu)
    state = _state(spec, setup, backend, step, on_cpu)
    inputs = setup.micro_sequences * setup.max_length * c.INPUT_BYTES_PER_TOKEN
    workspaces = 0 if on_cpu else library_workspaces(device)
    static = state.base + state.adapters + state.optimizer + inputs + workspaces
    phases = _phases(spec, setup, backend, step, state)
    peak = static + phases.above_static
    load = load_transient(spec, setup, on_cpu=on_cpu)
    context, slack = overheads(device, phases.above_static, backend.slack_share)
    saving = proof_bytes(spec, setup, state.adapters, load, 0 if on_cpu else context) if backend.is_ours else 0
    device_bytes = context + max(peak + slack, state.base + load + workspaces, state.base + saving)
    return MemoryEstimate(
        base_weights_bytes=state.base,
        adapters_bytes=state.adapters,
        gradients_bytes=state.gradients,
        optimizer_state_bytes=state.optimizer,
        inputs_bytes=inputs,
        library_workspaces_bytes=workspaces,
        saved_activations_bytes=phases.saved,
        loss_phase_bytes=phases.loss,
        recompute_phase_bytes=phases.recompute,
        optimizer_step_bytes=phases.step,
        dequantization_workspace_bytes=_dequantization_workspace(spec, setup),
        context_bytes=context,
        load_transient_bytes=load,
        allocator_slack_bytes=slack,
        static_allocated_bytes=static,
        peak_allocated_bytes=peak,
        device_bytes=device_bytes,
        bound_bytes=bound_of(device_bytes, on_cpu=on_cpu),
        evaluation_phase_bytes=phases.evaluation,
        saving_phase_bytes=saving,
    )


def check_setup(spec: ModelSpec, setup: TrainingSetup) -> None:
    """Raise InvalidSetupError where the setup contradicts itself or the model."""
    if min(setup.per_device_train_batch_size, setup.gradient_accumulation_steps, setup.max_length) < 1:
        raise InvalidSetupError("Batch size, accumulation steps and length must each be at least 1.")
    for dtype in (setup.dtype, setup.adapter_dtype or setup.dtype):
        if dtype not in DTYPE_BYTES:
            raise InvalidSetupError(f"The dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}.")
    if setup.method is Method.FULL:
        return
    if setup.lora_rank is None or setup.lora_target_modules is None:
        raise InvalidSetupError(f"{setup.method} needs lora_rank and lora_target_modules.")
    spec.lora_parameters(setup.lora_rank, setup.lora_target_modules)
    check_adapter(spec, setup.lora_target_modules, setup)


@dataclass(frozen=True)
class _State:
    """What lives from step to step, and the gradients. Bytes, but for `largest_parameter`."""

    base: int
    adapters: int
    gradients: int
    optimizer: int
    optimizer_step: int
    gradients_in_backward: int  # those alive when the pass ends


def _state(spec: ModelSpec, setup: TrainingSetup, backend: Backend, step: StepProfile, on_cpu: bool) -> _State:
    width = DTYPE_BYTES[setup.dtype]
    optimizer = optimizer_named(setup.optimizer)
    if step.fused_optimizer:
        optimizer = replace(optimizer, foreach=False)
    if on_cpu:
        optimizer = replace(optimizer, paged=False)
    largest = max(spec.embedding_parameters, spec.largest_quantized_weight)
    trained, trained_bytes = trained_parameters(spec, setup), trained_width(setup)
    gradients = trained * trained_bytes
    if setup.method is Method.FULL:
        base, adapters = spec.parameters * width, 0
    else:
        base, adapters = _frozen_base_bytes(spec, setup), gradients + kept_bytes(spec, setup, casts=backend.is_ours)
    return _State(
        base,
        adapters,
        gradients,
        optimizer.state_bytes(trained, trained_bytes),
        optimizer.step_bytes(trained, trained_bytes, largest),
        largest * trained_bytes if optimizer.in_backward else gradients,
    )


def _frozen_base_bytes(spec: ModelSpec, setup: TrainingSetup) -> int:
    width = DTYPE_BYTES[setup.dtype]
    if setup.method is not Method.QLORA:
        return spec.parameters * width
    quantized = spec.quantizable_parameters
    return (spec.parameters - quantized) * width + int(quantized * nf4_bytes_per_parameter())


def nf4_bytes_per_parameter() -> float:
    """NF4 with double quantization: 4 bits, an 8-bit absmax per block, a float32 scale per 256 of those
    (Dettmers et al. 2023, section 3): 0.515869 bytes.
    """
    absmax = 1 / c.NF4_BLOCK_SIZE
    return c.NF4_BITS_PER_PARAMETER / 8 + absmax + 4 * absmax / c.NF4_ABSMAX_BLOCK_SIZE


@dataclass(frozen=True)
class _Phases:
    """Bytes above the static part, phase by phase."""

    saved: int
    loss: int
    recompute: int
    step: int
    evaluation: int
    above_static: int


def _phases(spec: ModelSpec, setup: TrainingSetup, backend: Backend, step: StepProfile, state: _State) -> _Phases:
    layers = layers_memory(spec, setup, step)
    throughout = _alive_throughout(spec, setup, step)
    kept = sum(count * (m.input_bytes if setup.gradient_checkpointing else m.saved_bytes) for count, m in layers)
    loss = backend.loss_phase(spec, setup, step)
    # With accumulation every micro-batch but the first finds the gradients of the ones before it.
    earlier = state.gradients_in_backward if setup.gradient_accumulation_steps > 1 else 0
    cached = state.adapters // 2 if step.autocast_weight_cache else 0
    head = _head_gradient(spec, setup, state)
    top = max(_working_set(setup, m) for _, m in layers)
    bottom = max(m.backward_peak_bytes - m.parameter_gradient_bytes for _, m in layers)
    candidates = (
        throughout + kept + loss.forward_bytes + cached + earlier,
        throughout + kept + loss.backward_bytes + earlier,
        throughout + kept + loss.projection_bytes + max(earlier, head),
        throughout + kept + top + max(earlier, head),
        throughout + bottom + state.gradients_in_backward - _late_gradient(spec, setup),
        throughout + state.gradients_in_backward + _embedding_gradients(spec, setup),
        state.gradients_in_backward + state.optimizer_step,
    )
    evaluation = _evaluation(spec, setup, throughout, [m for _, m in layers], loss) if backend.is_ours else 0
    above = max(*candidates, evaluation)
    return _Phases(kept + throughout, loss.peak_bytes, top, state.optimizer_step, evaluation, above)


def _evaluation(
    spec: ModelSpec, setup: TrainingSetup, throughout: int, layers: Sequence[LayerMemory], loss: LossPhase
) -> int:
    """Held-out rows, as many at a time as in training, without gradients (training/objectives/likelihood.py)."""
    # The variables of the modelling code hold the layer's input, and that of its second block with its norm.
    forward = max(3 * layer.input_bytes + layer.forward_bytes + layer.weight_copies_bytes for layer in layers)
    return throughout + max(forward + _dequantization_workspace(spec, setup), loss.evaluation_bytes)


def proof_bytes(spec: ModelSpec, setup: TrainingSetup, adapters: int, load: int, context: int) -> int:
    """Checkpoints and exports are written from where the tensors lie; then the model is dropped, and a fresh process
    loads base and export and scores some examples on whole logits (worker/training/export/verification.py).

    On top of base weights and this process's context: another `context`, which a CPU has not, since the fork shares
    the first one; and the larger of loading and scoring.
    """
    tokens = min(setup.max_length, c.PROOF_TOKENS)
    # The logits, those of the scored tokens, and these in float32 with their log-softmax.
    logits = tokens * spec.vocab_size * (2 * DTYPE_BYTES[setup.dtype] + 2 * FLOAT32_BYTES)
    return context + adapters + max(load, logits, _plain_dora_bytes(spec, setup))


def _working_set(setup: TrainingSetup, layer: LayerMemory) -> int:
    """One layer's backward on top of what is kept, its own share of which must not be counted twice."""
    own = layer.input_bytes if setup.gradient_checkpointing else layer.saved_bytes
    return layer.backward_peak_bytes - own


def _alive_throughout(spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> int:
    """Rotary tables, shared by all layers, and the embedding's output where autograd holds it as a leaf."""
    width = DTYPE_BYTES[setup.dtype]
    tables = 2 * setup.max_length * spec.head_dim * width
    if step.keeps_embedding_output and spec.family.scaled_embedding:
        tables += setup.micro_sequences * setup.max_length * spec.hidden_size * width
    return tables


def _head_gradient(spec: ModelSpec, setup: TrainingSetup, state: _State) -> int:
    """The output projection's gradient, there before the first layer's backward starts."""
    if not trains_head(spec, setup):
        return 0
    return min(spec.embedding_parameters * trained_width(setup), state.gradients_in_backward)


def _embedding_gradients(spec: ModelSpec, setup: TrainingSetup) -> int:
    """The embedding's gradient where it comes beside others of the same weight, the last of a pass: the projection's,
    which waits for it where the two are tied, and the one of earlier micro-batches."""
    others = int(spec.tie_word_embeddings) + int(setup.gradient_accumulation_steps > 1)
    return others * spec.embedding_parameters * trained_width(setup) if trains_embedding(spec, setup) else 0


def _late_gradient(spec: ModelSpec, setup: TrainingSetup) -> int:
    """What of all gradients is not there before the bottom layer's backward is over: an embedding's trained beside
    adapters, which is large next to theirs."""
    if setup.method is Method.FULL or not trains_embedding(spec, setup) or _embedding_gradients(spec, setup):
        return 0
    return spec.embedding_parameters * trained_width(setup)


def _dequantization_workspace(spec: ModelSpec, setup: TrainingSetup) -> int:
    if setup.method is not Method.QLORA:
        return 0
    return spec.largest_quantized_weight * DTYPE_BYTES[setup.dtype]


def library_workspaces(device: Device | None) -> int:
    """cuBLAS's, one for each handle."""
    hopper = device is not None and (device.compute_capability or (0, 0)) >= HOPPER
    return c.CUBLAS_HANDLES * (c.CUBLAS_WORKSPACE_HOPPER_BYTES if hopper else c.CUBLAS_WORKSPACE_BYTES)


def load_transient(spec: ModelSpec, setup: TrainingSetup, *, on_cpu: bool) -> int:
    """Above the finished base: one tensor in flight, one 16-bit layer to quantize, on a CPU the mapped files."""
    width = DTYPE_BYTES[setup.dtype]
    largest_layer = max(group.parameters for group in spec.groups) * width
    started = _start_bytes(spec, setup)
    if setup.method is Method.QLORA:
        return max(largest_layer, spec.embedding_parameters * width, started)
    if on_cpu:
        return max(spec.parameters * width, started)
    return max(max(spec.embedding_parameters, spec.largest_quantized_weight) * width, started)


def _start_bytes(spec: ModelSpec, setup: TrainingSetup) -> int:
    """While adapters start from their base weights: themselves, and one weight at a time in float32, for which a 4-bit
    one is dequantized (worker/training/model/initialization.py)."""
    if setup.method is Method.FULL or not (setup.use_dora or setup.init_lora_weights in FACTORISED):
        return 0
    targets = setup.lora_target_modules or (ALL_LINEAR,)
    weight = max(linear.weight_parameters for _, linear in spec.targeted(targets))
    adapters = adapter_parameters(spec, setup) * trained_width(setup) + kept_bytes(spec, setup)
    return adapters + weight * FLOAT32_BYTES + _dequantization_workspace(spec, setup)


def _plain_dora_bytes(spec: ModelSpec, setup: TrainingSetup) -> int:
    """PEFT's own DoRA layer at its worst: B A formed from an identity `[in, in]`, in float32 and in 16 bits, the weight
    dequantized, the scaled product and their sum (peft/tuners/lora/dora.py, get_lora_weight and get_weight_norm)."""
    if not setup.use_dora:
        return 0
    width = DTYPE_BYTES[setup.dtype]
    return max(
        linear.in_features**2 * FLOAT32_BYTES + linear.weight_parameters * (FLOAT32_BYTES + 4 * width)
        for _, linear in spec.targeted(setup.lora_target_modules or (ALL_LINEAR,))
    )


def overheads(device: Device | None, above_static: int, slack_share: float = TUNEWRIGHT.slack_share) -> tuple[int, int]:
    """Context and allocator slack."""
    if device is not None and device.kind == "cpu":
        return c.CPU_PROCESS_BYTES, int(c.CPU_SLACK_SHARE * above_static)
    hopper = device is not None and (device.compute_capability or (0, 0)) >= HOPPER
    context = c.CUDA_CONTEXT_HOPPER_BYTES if hopper else c.CUDA_CONTEXT_BYTES
    return context, int(slack_share * above_static)


def bound_of(device_bytes: int, *, on_cpu: bool) -> int:
    """What is kept free on top of a prediction."""
    if on_cpu:
        return int(c.CPU_BOUND_SHARE * device_bytes) + c.BOUND_BYTES
    return int(c.BOUND_SHARE * device_bytes) + c.BOUND_BYTES
