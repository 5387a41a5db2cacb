"""The model hub: configuration and tokenizer to plan, safetensors weights to train, and clear words when it says no."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
import orjson
from huggingface_hub import (
    HfApi,
    constants,
    get_local_safetensors_metadata,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from core.errors import InvalidModelError, ModelNotFoundError, PermissionDeniedError, ServiceUnavailableError

METADATA = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
WEIGHTS = [*METADATA, "*.safetensors"]
NO_WEIGHTS = ["consolidated*.safetensors"]  # the same weights once more, for Mistral's own code
CONNECT_SECONDS = 10.0
# What is fetched to plan with a model: the largest tokenizers have some 35 MB.
LARGEST_FILE_BYTES, MOST_BYTES, MOST_FILES = 64 * 1024**2, 160 * 1024**2, 500


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
        try:
            info = HfApi().model_info(hub_id, files_metadata=True, timeout=CONNECT_SECONDS)
        except (OfflineModeIsEnabled, httpx2.TransportError):
            if (found := downloaded(hub_id)) is None:
                raise
            return found, found.name  # the newest commit that is here, complete
        names = {sibling.rfilename for sibling in info.siblings or []}
        if not any(name.endswith(".safetensors") for name in names):
            raise InvalidModelError(
                f"The hub model {hub_id!r} has no safetensors weights, only files that can run code when loaded. "
                "Choose a revision or a model with safetensors.",
                code="unsafe_weights",
                param="model",
            )
        _check_sizes(hub_id, info)
        revision = info.sha or "main"
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=METADATA)), revision


def known_metadata(hub_id: str) -> tuple[Path, str]:
    """As `fetch_metadata`, of what was fetched before; asks nobody. Raises PermissionDeniedError where nothing was."""
    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=METADATA, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise PermissionDeniedError(
            f"The hub model {hub_id!r} has not been used here yet, and fetching its configuration and tokenizer needs "
            "the scope 'write'; yours is 'read'.",
            code="insufficient_scope",
            param="model",
        ) from None
    return directory, directory.name


def _check_sizes(hub_id: str, info: ModelInfo) -> None:
    """Raises InvalidModelError where what is fetched to plan with a model is too much, before any of it is."""
    sizes = {
        sibling.rfilename: sibling.size
        for sibling in info.siblings or []
        if any(fnmatchcase(sibling.rfilename, pattern) for pattern in METADATA)
    }
    problem = None
    if None in sizes.values():
        problem = "the hub does not say how large they are"
    elif len(sizes) > MOST_FILES:
        problem = f"there are {len(sizes):,} of them, and {MOST_FILES:,} are read"
    elif (largest := max(sizes, key=lambda name: sizes[name] or 0, default=None)) is not None:
        size, total = sizes[largest] or 0, sum(size or 0 for size in sizes.values())
        if size > LARGEST_FILE_BYTES:
            problem = f"{largest} has {size:,} bytes, and {LARGEST_FILE_BYTES:,} are read"
        elif total > MOST_BYTES:
            problem = f"they have {total:,} bytes together, and {MOST_BYTES:,} are read"
    if problem is not None:
        raise InvalidModelError(
            f"The configuration and tokenizer files of {hub_id!r} are not fetched: {problem}. Copy the model into the "
            "models folder, and use the directory's name.",
            code="metadata_too_large",
            param="model",
        )


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
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=WEIGHTS, ignore_patterns=NO_WEIGHTS))


def downloaded(hub_id: str) -> Path | None:
    """The directory of a hub model whose weights are all on this machine already. Asks nobody."""
    found = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(found, str):
        return None
    directory = Path(found).parent
    try:
        index = orjson.loads((directory / "model.safetensors.index.json").read_bytes())
        files = set(index["weight_map"].values())
    except FileNotFoundError:
        files = {"model.safetensors"}
    return directory if all((directory / name).exists() for name in files) else None


def is_offline() -> bool:
    """Whether this process was told never to ask the hub."""
    return constants.HF_HUB_OFFLINE


def refused_models(hub_ids: Iterable[str]) -> frozenset[str]:
    """Those of the models that the hub does not let this installation download. Raises ServiceUnavailableError."""
    refused = set()
    for hub_id in hub_ids:
        with _explained(hub_id):
            try:
                HfApi().auth_check(hub_id)
            except RepositoryNotFoundError:  # a gated one is a kind of it
                refused.add(hub_id)
    return frozenset(refused)


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
