"""How far a device reaches with a model: the least compressed method that fits, and the longest rows it can take."""

from dataclasses import dataclass
from functools import lru_cache

from planner.candidates import LADDER, OPTIMIZER
from planner.devices import Device
from planner.memory import estimate_memory
from planner.model_spec import ALL_LINEAR, ModelSpec
from planner.setup import Method, Quantization, TrainingSetup

USEFUL_LENGTH = 1024  # tokens; a method that does not reach it, or the model's context, is not offered
RANK = 16


@dataclass(frozen=True)
class Reach:
    """`max_length` is the longest power of two, in tokens, that fits; the model's context where that fits whole."""

    method: Method
    max_length: int


@lru_cache(maxsize=4096)
def reach(spec: ModelSpec, device: Device) -> Reach | None:
    """The least compressed method that trains rows of a useful length on this device, one row at a time with
    checkpointing, and the longest rows it can take. None where nothing fits."""
    limit = spec.max_position_embeddings
    for method in LADDER:
        length = min(USEFUL_LENGTH, limit)
        if not _fits(spec, device, method, length):
            continue
        while length < limit and _fits(spec, device, method, min(2 * length, limit)):
            length = min(2 * length, limit)
        return Reach(method, length)
    return None


def _fits(spec: ModelSpec, device: Device, method: Method, length: int) -> bool:
    is_full = method is Method.FULL
    setup = TrainingSetup(
        method=method,
        quantization=Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None,
        lora_rank=None if is_full else RANK,
        lora_alpha=None if is_full else 2 * RANK,
        lora_target_modules=None if is_full else (ALL_LINEAR,),
        adapter_dtype=None if is_full else "float32",
        max_length=length,
        gradient_checkpointing=True,
        attn_implementation="eager" if spec.family.eager_attention_only else "sdpa",
        optimizer=OPTIMIZER,
    )
    return estimate_memory(spec, setup, device).required_bytes <= device.free_bytes
