"""The model hub: configuration and tokenizer to plan, safetensors weights to train, and clear words when it says no."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

import httpx2
import orjson
from huggingface_hub import constants, get_local_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import ModelInfo

from core.errors import (
    InvalidModelError,
    ModelNotFoundError,
    PermissionDeniedError,
    ServiceUnavailableError,
)
from core.hub_access import CONNECT_SECONDS, HubAccess, is_away
from planner import catalogue

METADATA = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*")
WEIGHTS = (*METADATA, "*.safetensors")
NO_WEIGHTS = "consolidated*.safetensors"  # the same weights once more, for Mistral's own code
TEMPLATES = "additional_chat_templates"  # the one folder that is read; others hold other formats of the model
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


def fetch_metadata(hub_id: str, access: HubAccess) -> tuple[Path, str]:
    """Configuration and tokenizer of a hub model: their directory and the commit. Raises as `base_models` says."""
    with _explained(hub_id, access):
        try:
            info = _readable(hub_id, access)
        except (OfflineModeIsEnabled, httpx2.TransportError) as error:
            found = downloaded(hub_id) if _is_everybodys(hub_id, access, error) else None
            if found is None:
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
        return _download(hub_id, revision, _wanted(info, METADATA), access), revision


def known_metadata(hub_id: str, access: HubAccess) -> tuple[Path, str]:
    """As `fetch_metadata`, of what was fetched before. Raises PermissionDeniedError where nothing was.

    The hub is asked all the same: what one organization may read lies in the same folder as what another may.
    """
    with _explained(hub_id, access):
        revision = _readable(hub_id, access).sha or "main"
    try:
        return _stored(hub_id, revision, METADATA), revision
    except LocalEntryNotFoundError:
        raise PermissionDeniedError(
            f"The hub model {hub_id!r} has not been used here yet, and fetching its configuration and tokenizer needs "
            "the scope 'write'; yours is 'read'.",
            code="insufficient_scope",
            param="model",
        ) from None


def _readable(hub_id: str, access: HubAccess) -> ModelInfo:
    """What the hub says of a model whose files this access can read. Raises the hub library's errors.

    The library answers from its cache where the hub refuses, and does not ask at all for a commit that it has.
    """
    info = access.api().model_info(hub_id, files_metadata=True, timeout=CONNECT_SECONDS)
    if info.gated:
        access.check_files("model", hub_id)
    return info


def _wanted(info: ModelInfo, patterns: tuple[str, ...]) -> list[str]:
    """The files of a listing that the patterns mean, by their exact paths: those of a folder are another format's."""
    return [
        path
        for path in (sibling.rfilename for sibling in info.siblings or [])
        if ("/" not in path and _is_any(path, patterns) and not fnmatchcase(path, NO_WEIGHTS))
        or (path.startswith(f"{TEMPLATES}/") and path.endswith(".jinja") and path.count("/") == 1)
    ]


def _is_any(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _download(hub_id: str, revision: str, paths: list[str], access: HubAccess) -> Path:
    exact = [escape(path) for path in paths]
    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=exact, token=access.credential))


def _stored(hub_id: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """What is here of a commit already. Raises LocalEntryNotFoundError where that is not all of it."""
    return Path(
        snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*", NO_WEIGHTS],
            local_files_only=True,
            token=False,
        )
    )


def _check_sizes(hub_id: str, info: ModelInfo) -> None:
    """Raises InvalidModelError where what is fetched to plan with a model is too much, before any of it is."""
    wanted = set(_wanted(info, METADATA))
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or [] if sibling.rfilename in wanted}
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


def fetch_planned_metadata(hub_id: str, revision: str, access: HubAccess) -> Path:
    """The same at one commit, as it was planned. Raises as `base_models` says."""
    return _fetch_planned(hub_id, revision, METADATA, access)


def fetch_weights(hub_id: str, revision: str | None, access: HubAccess) -> Path:
    """The whole model at one commit, safetensors only. Raises as `base_models` says."""
    return _fetch_planned(hub_id, revision or "main", WEIGHTS, access)


def _fetch_planned(hub_id: str, revision: str, patterns: tuple[str, ...], access: HubAccess) -> Path:
    """Files of a commit, of this machine where the hub is away: its readers proved their access when they planned."""
    with _explained(hub_id, access), _still_there(hub_id, revision, access):
        try:
            _readable(hub_id, access)
            info = access.api().model_info(hub_id, revision=revision, timeout=CONNECT_SECONDS)
        except (RevisionNotFoundError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
            if not isinstance(error, RevisionNotFoundError) and not is_away(error):
                raise
            try:
                return _stored(hub_id, revision, patterns)
            except LocalEntryNotFoundError:
                raise error from None
        return _download(hub_id, revision, _wanted(info, patterns), access)


def fetch_headers(hub_id: str, revision: str | None, access: HubAccess) -> dict[str, StoredTensor]:
    """Names, types and shapes of all tensors, by range requests for the heads of the files.

    Raises as `base_models` says, and the hub library's own errors for files that are no safetensors.
    """
    with _explained(hub_id, access):
        return _tensors(access.api().get_safetensors_metadata(hub_id, revision=revision, timeout=CONNECT_SECONDS))


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """The same of a directory. Raises OSError and the hub library's errors."""
    return _tensors(get_local_safetensors_metadata(directory))


def _tensors(read: Any) -> dict[str, StoredTensor]:  # a class that the library does not export
    return {
        name: StoredTensor(tensor.dtype, tuple(tensor.shape))
        for file in read.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def downloaded(hub_id: str) -> Path | None:
    """The newest directory of a hub model whose weights are all on this machine already. Asks nobody."""
    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=hub_id, repo_type="model"))
    snapshots = sorted((cached / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((directory for directory in snapshots if _is_complete(directory)), None)


def _is_complete(directory: Path) -> bool:
    if not (directory / "config.json").exists():
        return False
    try:
        index = orjson.loads((directory / "model.safetensors.index.json").read_bytes())
        files = set(index["weight_map"].values())
    except FileNotFoundError:
        files = {"model.safetensors"}
    return all((directory / name).exists() for name in files)


def _is_everybodys(hub_id: str, access: HubAccess, error: Exception) -> bool:
    """Whether what is here of a model may be read by who could not ask the hub.

    One who was told to work offline has filled the cache for all; else it holds what others were let in to.
    """
    is_public = any(entry.hub_id == hub_id and not entry.is_gated for entry in catalogue.models())
    return isinstance(error, OfflineModeIsEnabled) or access.is_this_machines or is_public


def is_offline() -> bool:
    """Whether this process was told never to ask the hub."""
    return constants.HF_HUB_OFFLINE


def refused_models(hub_ids: Iterable[str], access: HubAccess) -> frozenset[str]:
    """Those of the models whose files this access does not open. Raises ServiceUnavailableError."""
    refused = set()
    for hub_id in hub_ids:
        with _explained(hub_id, access):
            try:
                access.check_files("model", hub_id)
            except RepositoryNotFoundError:  # a gated one is a kind of it
                refused.add(hub_id)
    return frozenset(refused)


@contextmanager
def _still_there(hub_id: str, revision: str, access: HubAccess) -> Iterator[None]:
    """Say what the hub has in place of a commit that it has no longer."""
    try:
        yield
    except RevisionNotFoundError:
        newest = access.api().model_info(hub_id, timeout=CONNECT_SECONDS).sha or "unknown"
        raise InvalidModelError(
            f"The base model {hub_id!r} was planned at the commit {revision[:12]}, which the hub no longer has; "
            f"its newest is {newest[:12]}. Plan and start a new job for that one, or have its "
            "owner bring the old one back.",
            code="model_changed",
            param="model",
        ) from None


@contextmanager
def _explained(hub_id: str, access: HubAccess) -> Iterator[None]:
    try:
        yield
    except GatedRepoError:
        raise InvalidModelError(
            f"The hub model {hub_id!r} is gated: accept its terms on the hub. {access.advice}",
            code="model_gated",
            param="model",
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelNotFoundError(
            f"The model {hub_id!r} is neither in the catalogue nor found on the hub. Check its spelling. "
            f"{access.advice}",
            param="model",
        ) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.HTTPError, HfHubHTTPError, OSError) as error:
        raise access.refusal(error, "model") or _unreachable(hub_id, error) from None


def _unreachable(hub_id: str, error: Exception) -> ServiceUnavailableError:
    return ServiceUnavailableError(
        f"The model hub did not answer for {hub_id!r} ({type(error).__name__}). Try again, or copy the model into "
        "the models folder and use the directory's name.",
        code="hub_unreachable",
        param="model",
    )
