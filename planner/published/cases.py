"""Rows of a batch of estimates: `{id, config, setup, gpu}`, one JSON object a line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from planner.devices import Device, parse_gpu
from planner.errors import InvalidSetupError
from planner.memory.backend import TUNEWRIGHT, Backend
from planner.model.spec import ModelSpec
from planner.published.trainers import Loss, PublishedTrainer
from planner.setup import Method, Quantization, TrainingSetup

# torchtune's README adds one optimization per row of its table, each on top of those before it (bd2a0fc7c3, section
# "Optimization flags"); a row is described by the last one it added.
_TORCHTUNE_FLAGS = ("packed", "compile", "chunked CE", "activation checkpointing", "optimizer in backward")


@dataclass(frozen=True)
class Case:
    """One run to estimate."""

    id: str
    spec: ModelSpec
    setup: TrainingSetup
    backend: Backend  # the trainer that made it
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
    backend = read_backend(setup)
    if isinstance(backend, PublishedTrainer) and isinstance(described, str):
        backend = _as_described(backend, described)
    device = parse_gpu(gpu) if isinstance(gpu, str) and gpu else None
    ours = {name: value for name, value in setup.items() if name not in ("stack", "loss")}
    return Case(str(row.get("id")), ModelSpec.from_config(config), read_setup(ours), backend, device, config)


def read_backend(setup: Mapping[str, object]) -> Backend:
    """The trainer that a row's `setup` names, ours where it names none. Raises InvalidSetupError."""
    stack = setup.get("stack")
    named = {str(key): value for key, value in stack.items()} if isinstance(stack, Mapping) else {}
    try:
        loss = Loss(str(setup.get("loss", Loss.FUSED_LINEAR_CE)))
    except ValueError as error:
        raise InvalidSetupError(f"setup: {error}.") from error
    if named.get("library", "tunewright") != "tunewright":
        return PublishedTrainer(**{**named, "loss": loss})
    if loss is not Loss.FUSED_LINEAR_CE:
        raise InvalidSetupError(f"setup: this trainer has the loss fused_linear_ce alone, not {loss}.")
    return TUNEWRIGHT


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
    except ValueError as error:
        raise InvalidSetupError(f"setup: {error}.") from error
    targets = values.get("lora_target_modules")
    if isinstance(targets, str):
        read["lora_target_modules"] = (targets,)
    elif isinstance(targets, list | tuple):
        read["lora_target_modules"] = tuple(map(str, targets))
    return TrainingSetup(**read)  # type: ignore[arg-type]  # plain values of JSON, named as the fields are


def _as_described(trainer: PublishedTrainer, described: str) -> PublishedTrainer:
    if trainer.library != "torchtune" or not described:
        return trainer
    last = next((i for i, flag in enumerate(_TORCHTUNE_FLAGS) if f"cumulative step: +{flag}" in described), None)
    if last is None:
        return replace(trainer, compiled="compile" in described)
    loss = Loss.CHUNKED_CE if last >= _TORCHTUNE_FLAGS.index("chunked CE") else trainer.loss
    return replace(trainer, loss=loss, compiled=last >= _TORCHTUNE_FLAGS.index("compile"))
