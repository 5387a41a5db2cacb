"""Memory of one decoder layer for any micro-batch, read off its tape."""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.memory.decoder import DecoderLayer, is_windowed
from planner.memory.step_profile import StepProfile
from planner.model.spec import LayerGroup, ModelSpec
from planner.setup import TrainingSetup


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one decoder layer."""

    input_bytes: int  # all that checkpointing keeps of it
    saved_bytes: int  # what autograd keeps of it without checkpointing
    weight_copies_bytes: int  # 16-bit copies of weights among the saved
    backward_peak_bytes: int  # saved tensors, gradients and workspaces at the worst moment of its backward
    parameter_gradient_bytes: int
    forward_bytes: int  # on top of its input, at the worst moment of a forward pass that keeps nothing


@dataclass(frozen=True)
class _Line:
    """Bytes as a function of the micro-batch: `base + rows * row`."""

    base: int
    row: int

    def at(self, rows: int) -> int:
        return self.base + rows * self.row


@dataclass(frozen=True)
class _LayerLines:
    """One layer for any micro-batch. Every tensor is either per row or per weight, so every sum is a line."""

    source: _Line
    saved: _Line
    forward: _Line
    moments: tuple[_Line, ...]  # of its backward; those that can be the worst
    recomputed_moments: tuple[_Line, ...]  # the same with its input and output alive throughout
    weight_copies_bytes: int
    parameter_gradient_bytes: int

    def at(self, rows: int, recomputed: bool) -> LayerMemory:
        return LayerMemory(
            input_bytes=self.source.at(rows),
            saved_bytes=self.saved.at(rows),
            weight_copies_bytes=self.weight_copies_bytes,
            backward_peak_bytes=max([x.at(rows) for x in (self.recomputed_moments if recomputed else self.moments)]),
            parameter_gradient_bytes=self.parameter_gradient_bytes,
            forward_bytes=self.forward.at(rows),
        )


@lru_cache(maxsize=4096)
def layers_memory(spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> tuple[tuple[int, LayerMemory], ...]:
    """For each of the model's groups: how many layers, and what one keeps and needs in a micro-batch of `setup`.

    With checkpointing its backward happens while its input and its recomputed output are alive too.
    """
    one_row = replace(
        setup,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        optimizer="",
    )
    lines = _lines_of_groups(spec, one_row, step)
    rows, recomputed = setup.micro_sequences, setup.gradient_checkpointing
    return tuple((group.count, of.at(rows, recomputed)) for group, of in zip(spec.groups, lines, strict=True))


@lru_cache(maxsize=1024)
def _lines_of_groups(spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> tuple[_LayerLines, ...]:
    """Groups that differ only in a window which their length does not reach are recorded once."""
    lines: dict[LayerGroup, _LayerLines] = {}
    shapes = [replace(group, count=1, windowed=is_windowed(spec, group, setup.max_length)) for group in spec.groups]
    for shape in shapes:
        lines[shape] = lines.get(shape) or _layer_lines(spec, shape, setup, step)
    return tuple(lines[shape] for shape in shapes)


def _layer_lines(spec: ModelSpec, group: LayerGroup, setup: TrainingSetup, step: StepProfile) -> _LayerLines:
    layer = DecoderLayer(spec, group, setup, step)
    layer.output = layer.layer(layer.source)
    tape, moments = layer.tape, layer.moments()
    return _LayerLines(
        source=_Line(0, tape.sizes[layer.source]),
        saved=_Line(tape.saved_weight_bytes, tape.saved_bytes),
        forward=_Line(0, tape.forward_bytes),
        moments=_upper([_Line(moment.of_weights, moment.of_rows) for moment in moments]),
        recomputed_moments=_upper([_Line(moment.of_weights, moment.of_rows + moment.kept) for moment in moments]),
        weight_copies_bytes=layer.weight_copies_bytes,
        parameter_gradient_bytes=sum(operation.parameter_gradient_bytes for operation in tape.operations),
    )


def _upper(lines: list[_Line]) -> tuple[_Line, ...]:
    """Without the lines that lie nowhere above another one."""
    kept: list[_Line] = []
    for line in sorted(lines, key=lambda line: (-line.row, -line.base)):
        if not kept or line.base > kept[-1].base:
            kept.append(line)
    return tuple(kept)
