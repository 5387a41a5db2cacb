"""Memory of one decoder layer for any micro-batch, read off its tape."""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.decoder import DecoderLayer, is_windowed
from planner.model_spec import LayerGroup, ModelSpec
from planner.setup import TrainingSetup
from planner.stacks import StackProfile


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
    weight_copies_bytes: int
    parameter_gradient_bytes: int


@lru_cache(maxsize=4096)
def layer_memory(
    spec: ModelSpec, group: LayerGroup, setup: TrainingSetup, stack: StackProfile, batch: int, length: int
) -> LayerMemory:
    """What one layer of `group` keeps and needs for `batch` rows of `length` tokens.

    With checkpointing its backward happens while its input and its recomputed output are alive too.
    """
    one_row = replace(
        setup, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_length=length, optimizer=""
    )
    lines = _layer_lines(spec, _shape(group, is_windowed(spec, group, length)), one_row, stack)
    return LayerMemory(
        input_bytes=lines.source.at(batch),
        saved_bytes=lines.saved.at(batch),
        weight_copies_bytes=lines.weight_copies_bytes,
        backward_peak_bytes=max(line.at(batch) for line in lines.moments),
        parameter_gradient_bytes=lines.parameter_gradient_bytes,
        forward_bytes=lines.forward.at(batch),
    )


@lru_cache(maxsize=256)
def _shape(group: LayerGroup, windowed: bool) -> LayerGroup:
    """Layers that differ only in a window which their length does not reach are recorded once."""
    return replace(group, count=1, windowed=windowed)


@lru_cache(maxsize=1024)
def _layer_lines(spec: ModelSpec, group: LayerGroup, setup: TrainingSetup, stack: StackProfile) -> _LayerLines:
    """The lines through one and two rows."""
    recomputed, plain = setup.gradient_checkpointing, replace(setup, gradient_checkpointing=False)
    one, two = (_recorded(spec, group, plain, stack, rows) for rows in (1, 2))
    source = one.tape.sizes[0]
    moments = map(_line, one.moments(recomputed=recomputed), two.moments(recomputed=recomputed))
    return _LayerLines(
        source=_Line(0, source),
        saved=_line(one.tape.saved_bytes, two.tape.saved_bytes),
        forward=_line(one.tape.forward_bytes, two.tape.forward_bytes),
        moments=_upper(list(moments)),
        weight_copies_bytes=one.weight_copies_bytes,
        parameter_gradient_bytes=sum(operation.parameter_gradient_bytes for operation in one.tape.operations),
    )


def _line(at_one: int, at_two: int) -> _Line:
    return _Line(2 * at_one - at_two, at_two - at_one)


def _upper(lines: list[_Line]) -> tuple[_Line, ...]:
    """Without the lines that lie nowhere above another one."""
    kept: list[_Line] = []
    for line in sorted(lines, key=lambda line: (-line.row, -line.base)):
        if not kept or line.base > kept[-1].base:
            kept.append(line)
    return tuple(kept)


@lru_cache(maxsize=256)
def _recorded(spec: ModelSpec, group: LayerGroup, setup: TrainingSetup, stack: StackProfile, rows: int) -> DecoderLayer:
    """One tape, which checkpointing does not change."""
    layer = DecoderLayer(spec, group, setup, stack, rows, setup.max_length)
    layer.output = layer.layer(layer.source)
    return layer
