"""How far a device reaches with a model: the least compressed method that trains in useful time, the longest rows it
can take, and the time of a small typical job."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from planner import constants as c
from planner.devices import Device
from planner.memory.estimate import estimate_memory
from planner.model.spec import ALL_LINEAR, ModelSpec
from planner.policy.candidates import LADDER, OPTIMIZER
from planner.setup import Hyperparameters, Method, Quantization, TrainingSetup
from planner.statistics import DatasetStatistics
from planner.throughput import estimate_speed

USEFUL_LENGTH = 1024  # tokens; a method that does not reach it, or the model's context, is not offered
RANK = 16
ROWS_PER_STEP = 16
SMALL_JOB = DatasetStatistics(
    examples=c.SMALL_JOB_EXAMPLES,
    tokens=c.SMALL_JOB_EXAMPLES * c.SMALL_JOB_TOKENS,
    trained_tokens=c.SMALL_JOB_EXAMPLES * c.SMALL_JOB_TOKENS // 2,
    token_lengths=(c.SMALL_JOB_TOKENS,) * c.SMALL_JOB_EXAMPLES,
)
SMALL_RUN = Hyperparameters(
    n_epochs=c.SMALL_JOB_EPOCHS, learning_rate=1e-4, held_out_rows=round(c.VALIDATION_SPLIT * c.SMALL_JOB_EXAMPLES)
)


@dataclass(frozen=True)
class LongestContext:
    """`max_length` is the longest power of two, in tokens, that fits; the model's context where that fits whole."""

    method: Method
    max_length: int
    seconds: float  # predicted, of a small typical job

    @property
    def is_useful(self) -> bool:
        """Whether a small typical job ends within twelve hours. What fits the memory alone may take weeks."""
        return self.seconds <= c.USEFUL_SECONDS


@lru_cache(maxsize=4096)
def longest_context(spec: ModelSpec, device: Device) -> LongestContext | None:
    """The least compressed method that trains rows of a useful length on this device in useful time, and the longest
    rows it can take, one at a time with checkpointing.

    Where none is quick enough, the quickest that fits the memory. None where nothing fits.
    """
    slow: list[LongestContext] = []
    for method in LADDER:
        if _fits(spec, device, _frugal_setup(spec, method, USEFUL_LENGTH)):
            found = LongestContext(method, _max_length(spec, device, method), _seconds(spec, device, method))
            if found.is_useful:
                return found
            slow.append(found)
    return min(slow, key=lambda one: one.seconds, default=None)


def farthest(found: Iterable[LongestContext | None]) -> LongestContext | None:
    """What several devices reach together: the least compressed method with the longest rows that trains in useful
    time; else the quickest."""
    known = [one for one in found if one is not None]
    useful = [one for one in known if one.is_useful]
    if useful:
        return min(useful, key=lambda one: (LADDER.index(one.method), -one.max_length, one.seconds))
    return min(known, key=lambda one: one.seconds, default=None)


def _max_length(spec: ModelSpec, device: Device, method: Method) -> int:
    limit = spec.max_position_embeddings
    length = min(USEFUL_LENGTH, limit)
    while length < limit and _fits(spec, device, _frugal_setup(spec, method, 2 * length)):
        length = min(2 * length, limit)
    return length


def _seconds(spec: ModelSpec, device: Device, method: Method) -> float:
    """Of a small typical job, in micro-batches of as many tokens as a row of the useful length."""
    rows = USEFUL_LENGTH // c.SMALL_JOB_TOKENS
    small = replace(
        _frugal_setup(spec, method, c.SMALL_JOB_TOKENS),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=ROWS_PER_STEP // rows,
    )
    quick = replace(small, gradient_checkpointing=False)
    setup = quick if _fits(spec, device, quick) else small
    return estimate_speed(spec, setup, device, SMALL_JOB, SMALL_RUN).seconds


def _frugal_setup(spec: ModelSpec, method: Method, length: int) -> TrainingSetup:
    """One row of this many tokens, or of the model's context, with as little memory as the method takes."""
    is_full = method is Method.FULL
    return TrainingSetup(
        method=method,
        quantization=Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None,
        lora_rank=None if is_full else RANK,
        lora_alpha=None if is_full else 2 * RANK,
        lora_target_modules=None if is_full else (ALL_LINEAR,),
        adapter_dtype=None if is_full else "float32",
        max_length=min(length, spec.max_position_embeddings),
        gradient_checkpointing=True,
        attn_implementation="eager" if spec.family.eager_attention_only else "sdpa",
        optimizer=OPTIMIZER,
    )


def _fits(spec: ModelSpec, device: Device, setup: TrainingSetup) -> bool:
    return estimate_memory(spec, setup, device).required_bytes <= device.free_bytes
