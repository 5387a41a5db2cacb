"""The base models that one can choose from, with their size and what of them fits here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import orjson

from core.registry import base_models
from planner import catalogue
from planner.devices import Device
from planner.errors import InvalidConfigurationError, UnsupportedArchitectureError
from planner.model_spec import ModelSpec
from planner.reach import Reach, reach

_ROUNDED_BYTES = 1 << 28  # free memory moves with every heartbeat; what fits hardly does


@dataclass(frozen=True)
class ModelChoice:
    """A base model. `reach`: the best that this fleet can do with it. `is_local`: its weights are on this machine."""

    id: str
    title: str
    hub_id: str | None
    parameters: int | None
    context: int | None
    is_local: bool
    reach: Reach | None


def model_choices(models_dir: Path, devices: Sequence[Device], search: str = "") -> list[ModelChoice]:
    """The local models, then the catalogue's, smallest first, of those whose name holds every word of `search`."""
    local = base_models.local_model_ids(models_dir)
    known = {entry.id: entry for entry in catalogue.models()}
    found = [
        _choice(known[name], devices, True) if name in known else _local(models_dir, name, devices) for name in local
    ]
    found += [_choice(entry, devices, False) for entry in known.values() if entry.id not in local]
    chosen = [one for one in found if is_named(search, one.id, one.title, one.hub_id)]
    return sorted(chosen, key=lambda one: (not one.is_local, one.parameters or 0))


def is_named(search: str, *names: str | None) -> bool:
    """Whether every word of the search is somewhere in the names."""
    named = " ".join(name for name in names if name).lower()
    return all(word in named for word in search.lower().split())


def find_choice(models_dir: Path, devices: Sequence[Device], model_id: str) -> ModelChoice | None:
    """The choice with this id; None for a hub model that is not in the catalogue."""
    return next((one for one in model_choices(models_dir, devices) if one.id == model_id), None)


def _choice(entry: catalogue.CatalogueModel, devices: Sequence[Device], is_local: bool) -> ModelChoice:
    spec = catalogue_spec(entry.id)
    return ModelChoice(
        entry.id, entry.title, entry.hub_id, spec.parameters, spec.max_position_embeddings, is_local,
        best_reach(spec, devices),
    )  # fmt: skip


def _local(models_dir: Path, name: str, devices: Sequence[Device]) -> ModelChoice:
    try:
        spec = ModelSpec.from_config(orjson.loads((models_dir / name / "config.json").read_bytes()))
    except (orjson.JSONDecodeError, InvalidConfigurationError, UnsupportedArchitectureError):
        return ModelChoice(name, name, None, None, None, True, None)
    return ModelChoice(name, name, None, spec.parameters, spec.max_position_embeddings, True, best_reach(spec, devices))


@lru_cache(maxsize=256)
def catalogue_spec(model_id: str) -> ModelSpec:
    """The shape of a model of the catalogue."""
    entry = catalogue.find_model(model_id)
    assert entry is not None, "only ids of the catalogue are asked for"
    return ModelSpec.from_config(entry.config)


def best_reach(spec: ModelSpec, devices: Sequence[Device]) -> Reach | None:
    """The least compressed method, with the longest rows, that any of the devices can train."""
    found = [reach(spec, _rounded(device)) for device in devices]
    known = [one for one in found if one is not None]
    order = ("full", "lora", "qlora")
    return min(known, key=lambda one: (order.index(one.method), -one.max_length), default=None)


def _rounded(device: Device) -> Device:
    """The device as far as it matters, so that equal questions are answered once."""
    return replace(device, free_bytes=device.free_bytes // _ROUNDED_BYTES * _ROUNDED_BYTES, uuid="", index=0)
