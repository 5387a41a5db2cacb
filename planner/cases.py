"""Rows of a batch of estimates: `{id, config, setup, gpu}`, one JSON object a line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from planner.devices import Device, parse_gpu
from planner.errors import InvalidSetupError
from planner.model_spec import ModelSpec
from planner.setup import Loss, Method, Quantization, Stack, TrainingSetup

# torchtune's README adds one optimization per row of its table, each on top of those before it (bd2a0fc7c3, section
# "Optimization flags"); a row is described by the last one it added.
_TORCHTUNE_FLAGS = ("packed", "compile", "chunked CE", "activation checkpointing", "optimizer in backward")


@dataclass(frozen=True)
class Case:
    """One run to estimate."""

    id: str
    spec: ModelSpec
    setup: TrainingSetup
    device: Device | None
    config: Mapping[str, object]


def read_case(row: Mapping[str, object]) -> Case:
    """The case that a row describes.

    A row may carry a free text `stack` that says what `setup` has no words for: whether a published run was compiled,
    and on top of which other options. Raises PlannerError's subclasses for what cannot be estimated.
    """
    config, setup, gpu = row.get("config"), row.get("setup"), row.get("gpu")
    if not isinstance(config, Mapping) or not isinstance(setup, Mapping):
        raise InvalidSetupError(f"Row {row.get('id')!r} needs `config` and `setup`, each an object.")
    described = row.get("stack")
    read = _with_description(read_setup(setup), described if isinstance(described, str) else "")
    device = parse_gpu(gpu) if isinstance(gpu, str) and gpu else None
    return Case(str(row.get("id")), ModelSpec.from_config(config), read, device, config)


def read_setup(values: Mapping[str, object]) -> TrainingSetup:
    """A setup from plain JSON values. Raises InvalidSetupError for unknown names and values."""
    known = {field.name for field in fields(TrainingSetup)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InvalidSetupError(f"setup has unknown fields: {', '.join(unknown)}.")
    read = dict(values)
    try:
        read["method"] = Method(str(values.get("method")))
        if values.get("quantization") is not None:
            read["quantization"] = Quantization(str(values["quantization"]))
        if "loss" in values:
            read["loss"] = Loss(str(values["loss"]))
    except ValueError as error:
        raise InvalidSetupError(f"setup: {error}.") from error
    stack, targets = values.get("stack"), values.get("lora_target_modules")
    if isinstance(stack, Mapping):
        read["stack"] = Stack(**{str(key): value for key, value in stack.items()})
    if isinstance(targets, str):
        read["lora_target_modules"] = (targets,)
    elif isinstance(targets, list | tuple):
        read["lora_target_modules"] = tuple(map(str, targets))
    return TrainingSetup(**read)  # type: ignore[arg-type]  # plain values of JSON, named as the fields are


def _with_description(setup: TrainingSetup, described: str) -> TrainingSetup:
    if setup.stack.library != "torchtune" or not described:
        return setup
    last = next((i for i, flag in enumerate(_TORCHTUNE_FLAGS) if f"cumulative step: +{flag}" in described), None)
    if last is None:
        return replace(setup, stack=replace(setup.stack, compiled="compile" in described))
    loss = Loss.CHUNKED_CE if last >= _TORCHTUNE_FLAGS.index("chunked CE") else setup.loss
    compiled = last >= _TORCHTUNE_FLAGS.index("compile")
    return replace(setup, loss=loss, stack=replace(setup.stack, compiled=compiled))
