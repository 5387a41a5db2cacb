"""Runs worth considering: every method, rank, checkpointing and micro-batch that may be, each estimated."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from planner import constants as c
from planner.devices import Device
from planner.errors import InvalidSetupError, UnusableDeviceError
from planner.kernels import attention_on, with_kernels
from planner.memory.estimate import NO_CORRECTION, Correction, MemoryEstimate, estimate_memory
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.plans import Quote
from planner.policy.recipe import (
    Length,
    choose_alpha,
    choose_batch_size,
    choose_held_out,
    choose_hyperparameters,
    choose_length,
    choose_packed_batch,
    choose_rank,
    choose_targets,
)
from planner.precision import device_problem, trains_on
from planner.setup import Hyperparameters, InitLoraWeights, Method, Quantization, TrainingSetup
from planner.statistics import DatasetStatistics
from planner.throughput import (
    AS_PREDICTED,
    SAMPLES,
    Answering,
    SpeedCalibration,
    SpeedEstimate,
    estimate_speed,
    packed_rows,
)

LADDER = (Method.FULL, Method.LORA, Method.QLORA)  # from the least to the most compressed
OPTIMIZER = "adamw_torch_fused"
FRUGAL_OPTIMIZER = "paged_adamw_8bit"  # where the states of whole weights do not fit otherwise
SECONDS_PER_HOUR = 3600
MOST_SIZES = 8  # micro-batches considered, smallest first


Corrections = Mapping[tuple[str, Method], Correction]  # by device class and method
SpeedCalibrations = Mapping[tuple[str, Method], SpeedCalibration]


@dataclass(frozen=True)
class Candidate:
    """One run on one device, estimated."""

    device: Device
    setup: TrainingSetup
    hyperparameters: Hyperparameters
    memory: MemoryEstimate
    speed: SpeedEstimate
    quote: Quote

    @property
    def headroom_bytes(self) -> int:
        """Free bytes beyond what the run and its bound need."""
        return self.device.free_bytes - self.memory.required_bytes

    @property
    def fits(self) -> bool:
        """Whether it may run now."""
        return self.headroom_bytes >= 0


# What was estimated already of one model, data set and past, on one device of each sort: the others of the sort share
# it, and so do questions that differ in what is asked alone.
Known = dict[tuple[Device, TrainingSetup, Hyperparameters], Candidate]


class MemorySource(Protocol):
    """Where estimates come from: derived from a known family, or read off dry-run steps."""

    def estimate(self, setup: TrainingSetup, device: Device | None) -> MemoryEstimate:
        """Memory of a run on an empty device, uncorrected. Raises InvalidSetupError for what cannot be estimated."""
        ...


@dataclass(frozen=True)
class DerivedMemory:
    """Estimates from the model's family alone."""

    spec: ModelSpec

    def estimate(self, setup: TrainingSetup, device: Device | None) -> MemoryEstimate:
        """See `planner.memory.estimate`."""
        return estimate_memory(self.spec, setup, device)


@dataclass(frozen=True)
class Question:
    """All that a plan depends on.

    `prices`: credits per device-hour by device class, with a `default`. `corrections` and `speed_calibrations`: what
    finished runs have taught of memory and speed (planner/calibration.py). `memory`: where estimates come from if not
    from the model's family. `answering`: what the run generates before and after. `known`: estimates that were made,
    which a comparison of the same shares.
    """

    spec: ModelSpec
    statistics: DatasetStatistics
    devices: Sequence[Device]
    requested: RequestedConfig
    prices: Mapping[str, int]
    corrections: Corrections = field(default_factory=dict)
    speed_calibrations: SpeedCalibrations = field(default_factory=dict)
    memory: MemorySource | None = None
    answering: Answering = SAMPLES
    known: Known = field(default_factory=dict, compare=False)

    def memory_of(self, setup: TrainingSetup, device: Device) -> MemoryEstimate:
        """Memory of a run, uncorrected."""
        return (self.memory or DerivedMemory(self.spec)).estimate(setup, device)

    def correction_on(self, device: Device, method: Method) -> Correction:
        """What finished runs of this method on this class of device have taught."""
        return self.corrections.get((device.device_class, method), NO_CORRECTION)

    def pace_on(self, device: Device, method: Method) -> SpeedCalibration:
        """The same of the speed."""
        return self.speed_calibrations.get((device.device_class, method), AS_PREDICTED)


def usable_devices(question: Question) -> Sequence[Device]:
    """Those that can do what is asked. Raises InvalidSetupError where none is left.

    On a CPU attention runs example by example (worker/training/model/attention.py), so that compiled code would fit
    one batch and no other.
    """
    devices = question.devices
    if not devices:
        raise InvalidSetupError("There is no device to plan for.")
    problems = [device_problem(device, question.spec, allowed_methods(question)) for device in devices]
    usable = [device for device, problem in zip(devices, problems, strict=True) if problem is None]
    if not usable:
        raise UnusableDeviceError(" ".join(dict.fromkeys(problem for problem in problems if problem)))
    if not question.requested.torch_compile:
        return usable
    usable = [device for device in usable if device.kind == "cuda"]
    if not usable:
        raise InvalidSetupError(
            "torch_compile is for GPUs, and there is none to plan for: leave it out.", "torch_compile"
        )
    return usable


def allowed_methods(question: Question) -> tuple[Method, ...]:
    """Methods that the request leaves, least compressed first."""
    requested = question.requested
    if requested.method is not None:
        return (requested.method,)
    return LADDER[1:] if requested.about_the_adapter else LADDER


def candidates_on(question: Question, device: Device) -> Iterator[Candidate]:
    """Every run worth considering on one device. Lower ranks and 8-bit states only where nothing else fits."""
    length = length_on(question, device.kind)
    sort = replace(device, index=0, uuid="", free_bytes=0)  # all that an estimate looks at
    for method in (method for method in allowed_methods(question) if trains_on(device, method)):
        hyperparameters = choose_hyperparameters(question.spec, question.statistics, method, question.requested)
        for setup in _variants(question, length, method, attention_on(question.spec, device)):
            combinations = _combinations(question, with_kernels(setup, question.spec, device))
            tried = [_estimate(question, device, sort, combined, hyperparameters) for combined in combinations]
            yield from tried
            if any(candidate.fits for candidate in tried):
                break


def setups_on(question: Question, kind: str) -> list[TrainingSetup]:
    """One setup for each method, rank and checkpointing that could be considered on a kind of device."""
    length = length_on(question, kind)
    wanted = question.requested.gradient_checkpointing
    return [
        replace(setup, gradient_checkpointing=checkpointed)
        for method in allowed_methods(question)
        for setup in _variants(question, length, method, attention_on(question.spec, None))
        for checkpointed in ((False, True) if wanted is None else (wanted,))
    ]


def length_on(question: Question, kind: str) -> Length:
    """Rows on a kind of device: on a CPU equal-length batches are faster than long packed rows."""
    return choose_length(question.spec, question.statistics, question.requested, may_pack=kind == "cuda")


def _variants(question: Question, length: Length, method: Method, attention: str) -> Iterator[TrainingSetup]:
    """Setups of one method from the one that is wanted to the one that needs least."""
    requested, spec = question.requested, question.spec
    setup = TrainingSetup(
        method=method,
        max_length=length.max_length,
        packing=length.packing,
        attn_implementation=attention,
        optimizer=requested.optim or OPTIMIZER,
        torch_compile=bool(requested.torch_compile),
    )
    if method is Method.FULL:
        yield setup
        if requested.optim is None:
            yield replace(setup, optimizer=FRUGAL_OPTIMIZER)
        return
    targets = choose_targets(requested)
    wanted = requested.lora_rank or choose_rank(spec, question.statistics, targets)
    ranks = [wanted]
    while requested.lora_rank is None and ranks[-1] > c.SMALLEST_RANK:
        ranks.append(ranks[-1] // 2)
    for rank in ranks:
        setup = replace(
            setup,
            quantization=Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None,
            lora_rank=rank,
            lora_alpha=choose_alpha(rank, requested),
            lora_target_modules=targets,
            adapter_dtype="float32",
            lora_dropout=requested.lora_dropout or 0.0,
            use_rslora=bool(requested.use_rslora),
            use_dora=bool(requested.use_dora),
            init_lora_weights=requested.init_lora_weights or InitLoraWeights.DEFAULT,
            modules_to_save=requested.modules_to_save,
        )
        yield setup
    if setup.modules_to_save and requested.optim is None:
        yield replace(setup, optimizer=FRUGAL_OPTIMIZER)


def _combinations(question: Question, setup: TrainingSetup) -> Iterator[TrainingSetup]:
    """Micro-batch x accumulation x checkpointing that keep the effective batch."""
    requested = question.requested
    rows, effective = _batch(question, setup)
    pinned = requested.per_device_train_batch_size
    if effective > rows:  # a step holds no more rows than there are, and neither does memory
        pinned = min(pinned, rows) if pinned else None
        effective = pinned * -(-rows // pinned) if pinned else rows
    sizes = [pinned] if pinned else [n for n in range(1, effective + 1) if effective % n == 0]
    checkpointing = (False, True) if requested.gradient_checkpointing is None else (requested.gradient_checkpointing,)
    for checkpointed in checkpointing:
        for size in sizes[:MOST_SIZES]:
            yield replace(
                setup,
                gradient_checkpointing=checkpointed,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=effective // size,
            )


def _batch(question: Question, setup: TrainingSetup) -> tuple[int, int]:
    """Rows that an epoch trains, packed ones counted as such, and how many of them an optimizer step is to take."""
    statistics, requested = question.statistics, question.requested
    trained = max(1, statistics.examples - choose_held_out(statistics, requested))
    if not setup.packing:
        return trained, choose_batch_size(statistics.examples, setup.method, requested)
    rows = packed_rows(statistics, setup.max_length, share=trained / max(1, statistics.examples))
    return rows, choose_packed_batch(statistics, setup.max_length, requested)


def _estimate(
    question: Question, device: Device, sort: Device, setup: TrainingSetup, hyperparameters: Hyperparameters
) -> Candidate:
    if (key := (sort, setup, hyperparameters)) not in question.known:
        question.known[key] = _estimate_anew(question, sort, setup, hyperparameters)
    return replace(question.known[key], device=device)


def _estimate_anew(
    question: Question, device: Device, setup: TrainingSetup, hyperparameters: Hyperparameters
) -> Candidate:
    correction = question.correction_on(device, setup.method)
    memory = question.memory_of(setup, device).corrected(correction)
    speed = estimate_speed(question.spec, setup, device, question.statistics, hyperparameters, question.answering)
    pace = question.pace_on(device, setup.method)
    speed = speed if pace == AS_PREDICTED else speed.paced(pace)
    return Candidate(device, setup, hyperparameters, memory, speed, quote_for(question.prices, device, speed.seconds))


def quote_for(prices: Mapping[str, int], device: Device, seconds: float) -> Quote:
    """Whole credits for the predicted time and its margin, rounded up. Raises InvalidSetupError without a price."""
    rate = hourly_rate(prices, device)
    margin = seconds * c.CREDIT_MARGIN
    predicted = math.ceil(rate * seconds / SECONDS_PER_HOUR)
    total = math.ceil(rate * (seconds + margin) / SECONDS_PER_HOUR)
    return Quote(rate, seconds, margin, seconds + margin, predicted, total - predicted, total)


def hourly_rate(prices: Mapping[str, int], device: Device) -> int:
    """Credits per hour of a device: its class's price, a MIG slice's share of its card's, or the default.

    Raises InvalidSetupError without a price.
    """
    if device.device_class in prices:
        return prices[device.device_class]
    of_card = prices.get(device.card_class or "", prices.get("default"))
    if of_card is None:
        raise InvalidSetupError(f"The price list has neither {device.device_class!r} nor 'default'.")
    return math.ceil(of_card * device.card_share)
