"""What a checkpoint holds, read off the headers of its safetensors files: names, types and shapes, never weights.

A plan counts on `config.json`. Weights that are quantized already cannot be trained by this service, and weights that
the configuration does not describe would be filled up at random: both are refused before anything is priced.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from core.errors import InvalidModelError
from core.hub_access import HubAccess
from core.registry import hub
from core.registry.base_models import BaseModel
from core.registry.hub import StoredTensor
from planner.model.spec import ModelSpec

TRAINABLE_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
# The hub library finds most faults by itself, but takes whatever is JSON for a header.
UNREADABLE = (
    NotASafetensorsRepoError,
    SafetensorsParsingError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
)
COMPUTED = (".inv_freq",)  # buffers that old checkpoints carry, and that transformers computes


def check_weights(base_model: BaseModel, spec: ModelSpec | None) -> None:
    """Refuse weights that cannot be trained as planned; without a spec their number is not checked.

    Raises InvalidModelError for quantized weights and for others than config.json describes, and
    ServiceUnavailableError where the hub is needed and does not answer.
    """
    method = (base_model.config.get("quantization_config") or {}).get("quant_method")
    if base_model.config.get("quantization_config"):
        raise _quantized(base_model, f"config.json names the method {method!r}")
    tensors = stored_tensors(base_model)
    packed = next((name for name in tensors if tensors[name].dtype not in TRAINABLE_TYPES and _is_weight(name)), None)
    if packed is not None:
        raise _quantized(base_model, f"{packed} is of type {tensors[packed].dtype}")
    if spec is not None:
        _check_count(base_model, spec, tensors)


def stored_tensors(base_model: BaseModel) -> Mapping[str, StoredTensor]:
    """Every tensor of the checkpoint by name. Raises InvalidModelError, ServiceUnavailableError."""
    if not base_model.has_weights:
        assert base_model.hub_id is not None, "a model without weights came from the hub"
        return _on_hub(base_model.hub_id, base_model.hub_revision, base_model.access)
    files = sorted(base_model.directory.glob("*.safetensors"))
    return _in_directory(base_model.directory, tuple((file.name, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _on_hub(hub_id: str, revision: str | None, access: HubAccess) -> Mapping[str, StoredTensor]:
    try:
        return hub.fetch_headers(hub_id, revision, access)
    except UNREADABLE as error:
        raise _unreadable(hub_id, error) from None


@lru_cache(maxsize=64)
def _in_directory(directory: Path, _files: tuple[tuple[str, int], ...]) -> Mapping[str, StoredTensor]:
    try:
        return hub.read_headers(directory)
    except UNREADABLE as error:
        raise _unreadable(directory.name, error) from None


def _check_count(base_model: BaseModel, spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> None:
    heads = [name for name in tensors if name.endswith(HEADS)]
    if not spec.tie_word_embeddings and not heads:
        raise _mismatch(
            base_model,
            "config.json gives the output projection weights of its own (tie_word_embeddings is false), and the files "
            "have none: they would start at random. Set tie_word_embeddings to true if the model was trained so",
        )
    ignored = heads if spec.tie_word_embeddings else []  # a tied head may be written out once more
    found = sum(t.parameters for name, t in tensors.items() if name not in ignored and not name.endswith(COMPUTED))
    if found != spec.parameters:
        relation = "more" if found > spec.parameters else "fewer"
        raise _mismatch(
            base_model,
            f"the files hold {found:,} parameters, {abs(found - spec.parameters):,} {relation} than the "
            f"{spec.parameters:,} that config.json describes. Check that both belong to the same model",
        )


def _is_weight(name: str) -> bool:
    """Masks and counters are of other types, and are no weights."""
    return name.endswith("weight") or "experts" in name


def _quantized(base_model: BaseModel, evidence: str) -> InvalidModelError:
    return InvalidModelError(
        f"The weights of {base_model.id!r} are already quantized: {evidence}. Use the original 16-bit model as base; "
        "a plan quantizes it where memory demands it.",
        code="quantized_weights",
        param="model",
    )


def _mismatch(base_model: BaseModel, finding: str) -> InvalidModelError:
    return InvalidModelError(
        f"The weights of {base_model.id!r} are not those of its configuration: {finding}.",
        code="weights_mismatch",
        param="model",
    )


def _unreadable(name: str, error: Exception) -> InvalidModelError:
    return InvalidModelError(
        f"The safetensors headers of {name!r} cannot be read: {error}", code="unreadable_weights", param="model"
    )
