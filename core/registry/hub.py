"""The model hub: configuration and tokenizer to plan, safetensors weights to train, and clear words when it says no."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, get_local_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.errors import InvalidModelError, ModelNotFoundError, ServiceUnavailableError

METADATA = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
WEIGHTS = [*METADATA, "*.safetensors"]
CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint; its type as safetensors writes it, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


def fetch_metadata(hub_id: str) -> tuple[Path, str]:
    """Configuration and tokenizer of a hub model: their directory and the commit. Raises as `base_models` says."""
    with _explained(hub_id):
        info = HfApi().model_info(hub_id, timeout=CONNECT_SECONDS)
        names = {sibling.rfilename for sibling in info.siblings or []}
        if not any(name.endswith(".safetensors") for name in names):
            raise InvalidModelError(
                f"The hub model {hub_id!r} has no safetensors weights, only files that can run code when loaded. "
                "Choose a revision or a model with safetensors.",
                code="unsafe_weights",
                param="model",
            )
        revision = info.sha or "main"
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=METADATA)), revision


def fetch_planned_metadata(hub_id: str, revision: str) -> Path:
    """The same at one commit, as it was planned. Raises as `base_models` says."""
    with _explained(hub_id), _still_there(hub_id, revision):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=METADATA))


def fetch_headers(hub_id: str, revision: str | None) -> dict[str, StoredTensor]:
    """Names, types and shapes of all tensors, by range requests for the heads of the files.

    Raises as `base_models` says, and the hub library's own errors for files that are no safetensors.
    """
    with _explained(hub_id):
        return _tensors(HfApi().get_safetensors_metadata(hub_id, revision=revision, timeout=CONNECT_SECONDS))


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """The same of a directory. Raises OSError and the hub library's errors."""
    return _tensors(get_local_safetensors_metadata(directory))


def _tensors(read: Any) -> dict[str, StoredTensor]:  # a class that the library does not export
    return {
        name: StoredTensor(tensor.dtype, tuple(tensor.shape))
        for file in read.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def fetch_weights(hub_id: str, revision: str | None) -> Path:
    """The whole model at one commit, safetensors only. Raises as `base_models` says."""
    with _explained(hub_id), _still_there(hub_id, revision or "main"):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=WEIGHTS))


@contextmanager
def _still_there(hub_id: str, revision: str) -> Iterator[None]:
    """Say what the hub has in place of a commit that it has no longer."""
    try:
        yield
    except RevisionNotFoundError:
        newest = HfApi().model_info(hub_id, timeout=CONNECT_SECONDS).sha or "unknown"
        raise InvalidModelError(
            f"The base model {hub_id!r} was planned at the commit {revision[:12]}, which the hub no longer has; "
            f"its newest is {newest[:12]}. Plan and start a new job for that one, or have its "
            "owner bring the old one back.",
            code="model_changed",
            param="model",
        ) from None


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError:
        raise InvalidModelError(
            f"The hub model {hub_id!r} is gated. Accept its licence on the hub and set HF_TOKEN for the service.",
            code="model_gated",
            param="model",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelNotFoundError(
            f"The model {hub_id!r} is neither in the catalogue nor on the hub. Check its spelling; a private model "
            "needs HF_TOKEN set for the service.",
            param="model",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise ServiceUnavailableError(
            f"The model hub did not answer for {hub_id!r} ({type(error).__name__}). Try again, or copy the model into "
            "the models folder and use the directory's name.",
            code="hub_unreachable",
            param="model",
        ) from None
