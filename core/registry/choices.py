"""The base models that one can choose from: their size, whether their weights can be had, and what fits here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

import orjson

from core.registry import base_models, hub
from core.registry.hub_state import HubState
from planner import catalogue
from planner.devices import Device
from planner.errors import InvalidConfigurationError, UnsupportedArchitectureError
from planner.model.spec import ModelSpec
from planner.policy.longest_context import LongestContext, farthest, longest_context

_ROUNDED_BYTES = 1 << 28  # free memory moves with every heartbeat; what fits hardly does
_STORED_BYTES = 2  # of a parameter: the catalogue's models are stored in 16 bits


class Availability(StrEnum):
    """Where a base model's weights are."""

    LOCAL = "local"  # on this machine
    DOWNLOADABLE = "downloadable"  # on the hub, fetched when a job first needs them
    GATED = "gated"  # on the hub, which wants its licence to be accepted first
    UNREACHABLE = "unreachable"  # on a hub that does not answer, or that this installation may not ask


@dataclass(frozen=True)
class ModelChoice:
    """A base model. `longest_context`: the best that this fleet can do with it. `problem`: why it cannot be had."""

    id: str
    title: str
    hub_id: str | None
    parameters: int | None
    context: int | None
    availability: Availability
    longest_context: LongestContext | None
    problem: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether its weights are on this machine."""
        return self.availability is Availability.LOCAL

    @property
    def download_bytes(self) -> int | None:
        """What is to be fetched, about; None where nothing is."""
        return None if self.is_local or self.parameters is None else _STORED_BYTES * self.parameters


def model_choices(
    models_dir: Path, devices: Sequence[Device], hub_state: HubState, search: str = ""
) -> list[ModelChoice]:
    """The local models, then the catalogue's, smallest first, of those whose name holds every word of `search`."""
    local = base_models.local_model_ids(models_dir)
    known = {entry.id: entry for entry in catalogue.models()}
    found = [_of_catalogue(entry, devices, hub_state, is_local=entry.id in local) for entry in known.values()]
    found += [_of_folder(models_dir, name, devices) for name in local if name not in known]
    chosen = [one for one in found if is_named(search, one.id, one.title, one.hub_id)]
    return sorted(chosen, key=lambda one: (not one.is_local, one.parameters or 0))


def is_named(search: str, *names: str | None) -> bool:
    """Whether every word of the search is somewhere in the names."""
    named = " ".join(name for name in names if name).lower()
    return all(word in named for word in search.lower().split())


def find_choice(models_dir: Path, devices: Sequence[Device], hub_state: HubState, model_id: str) -> ModelChoice | None:
    """The choice with this id; None for a hub model that is not in the catalogue."""
    if base_models.MODEL_ID.fullmatch(model_id) is None:
        return None
    entry = catalogue.find_model(model_id)
    is_local = base_models.local_directory(models_dir, entry.id if entry else model_id) is not None
    if entry is not None:
        return _of_catalogue(entry, devices, hub_state, is_local=is_local)
    return _of_folder(models_dir, model_id, devices) if is_local else None


def _of_catalogue(
    entry: catalogue.CatalogueModel, devices: Sequence[Device], hub_state: HubState, *, is_local: bool
) -> ModelChoice:
    spec = catalogue_spec(entry.id)
    availability, problem = Availability.DOWNLOADABLE, None
    if is_local:
        availability = Availability.LOCAL
    elif hub_state.problem is None and entry.hub_id in hub_state.refused:  # also where others have fetched it
        availability = Availability.GATED
        problem = "Gated: accept its licence on the hub and add your own hub token under Settings"
    elif hub.downloaded(entry.hub_id) is not None:
        availability = Availability.LOCAL
    elif hub_state.problem is not None:
        availability, problem = Availability.UNREACHABLE, f"Not reachable: {hub_state.problem}"
    return ModelChoice(
        entry.id, entry.title, entry.hub_id, spec.parameters, spec.max_position_embeddings, availability,
        best_longest_context(spec, devices), problem,
    )  # fmt: skip


def _of_folder(models_dir: Path, name: str, devices: Sequence[Device]) -> ModelChoice:
    try:
        spec = ModelSpec.from_config(orjson.loads((models_dir / name / "config.json").read_bytes()))
    except (orjson.JSONDecodeError, InvalidConfigurationError, UnsupportedArchitectureError):
        return ModelChoice(name, name, None, None, None, Availability.LOCAL, None)
    return ModelChoice(
        name,
        name,
        None,
        spec.parameters,
        spec.max_position_embeddings,
        Availability.LOCAL,
        best_longest_context(spec, devices),
    )


@lru_cache(maxsize=256)
def catalogue_spec(model_id: str) -> ModelSpec:
    """The shape of a model of the catalogue."""
    entry = catalogue.find_model(model_id)
    assert entry is not None, "only ids of the catalogue are asked for"
    return ModelSpec.from_config(entry.config)


def best_longest_context(spec: ModelSpec, devices: Sequence[Device]) -> LongestContext | None:
    """What the devices can do with a model."""
    return farthest(longest_context(spec, _rounded(device)) for device in devices)


def _rounded(device: Device) -> Device:
    """The device as far as it matters, so that equal questions are answered once."""
    return replace(device, free_bytes=device.free_bytes // _ROUNDED_BYTES * _ROUNDED_BYTES, uuid="", index=0)
