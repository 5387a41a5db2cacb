"""Base models: where one is, whether it can be used, and what the planner needs to know of it.

A base model is a catalogue id, a hub id (`owner/name`) or a directory under the configured models folder; no other
path of the server can be named. To plan, only its configuration and tokenizer are read, never its weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from core.errors import InvalidModelError, ModelNotFoundError
from core.hub_access import ANONYMOUS, HubAccess
from core.registry import hub
from core.registry.fingerprint import fingerprint
from planner import catalogue

FINGERPRINT_LENGTH = 64  # a SHA-256 in hexadecimal
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


@dataclass(frozen=True)
class ModelRef:
    """A base model as it was at one time. `revision`: its commit on the hub, or its directory's fingerprint."""

    id: str
    revision: str | None  # None: as it is now

    @property
    def is_local(self) -> bool:
        """Whether it was a directory of the models folder: a commit of the hub is shorter than a fingerprint."""
        return self.revision is not None and len(self.revision) == FINGERPRINT_LENGTH


@dataclass(frozen=True)
class BaseModel:
    """A base model that can be planned. `directory` holds its configuration and tokenizer, and maybe its weights."""

    id: str  # what the user wrote, and what an adapter's configuration names unless `hub_id` is known
    hub_id: str | None
    revision: str  # the hub's commit, or the directory's fingerprint
    directory: Path
    config: Mapping[str, Any]
    access: HubAccess = field(default=ANONYMOUS, repr=False, compare=False)  # with which it was found on the hub

    @property
    def hub_revision(self) -> str | None:
        """The commit, of a model of the hub."""
        return None if ModelRef(self.id, self.revision).is_local else self.revision

    @property
    def has_weights(self) -> bool:
        """Whether the safetensors weights are in `directory`."""
        return any(self.directory.glob("*.safetensors"))


def find_base_model(models_dir: Path, model_id: str, access: HubAccess, *, may_fetch: bool = True) -> BaseModel:
    """The base model of this id. Without `may_fetch`, one of the hub only if it has been used here before.

    Raises ModelNotFoundError, InvalidModelError (gated, pickle weights only, no configuration or tokenizer),
    InvalidRequestError for a token that the hub refuses, ServiceUnavailableError where the hub is needed and does not
    answer, and PermissionDeniedError where it may not be.
    """
    if model_id.startswith("ft:"):
        raise InvalidModelError(
            f"{model_id!r} is a fine-tuned model. Name its base model: a tuned model cannot be tuned again here.",
            code="model_not_tunable",
            param="model",
        )
    hub_id, local = _places(models_dir, model_id)
    if local is not None:
        return _read(model_id, hub_id, None, local, access)
    if hub_id is None:
        raise ModelNotFoundError(_unknown(model_id), param="model")
    directory, revision = (hub.fetch_metadata if may_fetch else hub.known_metadata)(hub_id, access)
    return _read(model_id, hub_id, revision, directory, access)


def find_planned_model(models_dir: Path, planned: ModelRef, access: HubAccess) -> BaseModel:
    """The base model at the revision that was planned, and no other.

    Raises what `find_base_model` raises, and InvalidModelError where that revision cannot be had any more.
    """
    if planned.revision is None:
        return find_base_model(models_dir, planned.id, access)
    hub_id, local = _places(models_dir, planned.id)
    if not planned.is_local:
        if hub_id is None:
            raise ModelNotFoundError(_unknown(planned.id), param="model")
        directory = hub.fetch_planned_metadata(hub_id, planned.revision, access)
        return _read(planned.id, hub_id, planned.revision, directory, access)
    if local is None:
        raise _changed(planned, f"the folder {planned.id!r} is not on this worker's machine any more")
    found = _read(planned.id, hub_id, None, local, access)
    if found.revision != planned.revision:
        raise _changed(planned, f"its files on this worker's machine are now {found.revision[:12]}")
    return found


def _places(models_dir: Path, model_id: str) -> tuple[str | None, Path | None]:
    """The hub's id and the directory of a model, where it has them. Raises ModelNotFoundError."""
    if not MODEL_ID.fullmatch(model_id) or ".." in model_id:
        raise ModelNotFoundError(_unknown(model_id), param="model")
    entry = catalogue.find_model(model_id)
    hub_id = entry.hub_id if entry else model_id if "/" in model_id else None
    return hub_id, local_directory(models_dir, entry.id if entry else model_id)


def _changed(planned: ModelRef, finding: str) -> InvalidModelError:
    return InvalidModelError(
        f"The base model {planned.id!r} is not the one that was planned: the plan is for its files with the "
        f"fingerprint {str(planned.revision)[:12]}, and {finding}. Put the planned files back, "
        "or plan and start a new job.",
        code="model_changed",
        param="model",
    )


def local_model_ids(models_dir: Path) -> list[str]:
    """Ids of the usable directories under the models folder, sorted."""
    if not models_dir.is_dir():
        return []
    return sorted(path.parent.relative_to(models_dir).as_posix() for path in models_dir.glob("*/config.json"))


def _unknown(model_id: str) -> str:
    return (
        f"The model {model_id!r} does not exist. Use an id that GET /v1/models lists, a hub id (owner/name), or the "
        "name of a directory under the models folder."
    )


def local_directory(models_dir: Path, model_id: str) -> Path | None:
    """The directory of this name under the models folder, if it holds a model."""
    directory = (models_dir / model_id).resolve()
    if not directory.is_relative_to(models_dir.resolve()) or not (directory / "config.json").is_file():
        return None
    return directory


def _read(model_id: str, hub_id: str | None, revision: str | None, directory: Path, access: HubAccess) -> BaseModel:
    if not (directory / "config.json").is_file():
        raise InvalidModelError(
            f"The model {model_id!r} has no config.json. Name a model in the layout of transformers.",
            code="no_configuration",
            param="model",
        )
    weights = {path.suffix for path in directory.iterdir()}
    if revision is None and ".safetensors" not in weights:
        pickled = weights & {".bin", ".pt", ".pth"}
        raise InvalidModelError(
            f"The model {model_id!r} has no safetensors weights"
            + (", only pickle files, which can run code when loaded. Convert it to safetensors." if pickled else "."),
            code="unsafe_weights" if pickled else "no_weights",
            param="model",
        )
    if not (directory / "tokenizer.json").is_file():
        raise InvalidModelError(
            f"The model {model_id!r} has no tokenizer.json. Save its fast tokenizer beside the weights.",
            code="no_tokenizer",
            param="model",
        )
    try:
        config = orjson.loads((directory / "config.json").read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidModelError(f"config.json of {model_id!r} is not JSON: {error}.", param="model") from None
    return BaseModel(model_id, hub_id, revision or fingerprint(directory), directory, config, access)
