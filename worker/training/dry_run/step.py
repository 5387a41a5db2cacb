"""A dry-run training step: the loop's own forward, loss, backward and optimizer step on fake tensors.

Ground truth for the planner without a GPU. Operators run on shapes alone (torch's FakeTensorMode), so that an 8B
model's step takes seconds on a CPU; every storage is counted while it lives. Attention takes CUDA's kernels where the
plan is for CUDA. What is not seen: cuBLAS and other libraries' workspaces, the context, the allocator's slack.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from transformers import masking_utils

from core.errors import TrainingError
from planner.memory.dry_run import EVALUATION, EVALUATION_LOSS
from planner.setup import VARLEN_FLASH, Hyperparameters, Method, TrainingSetup
from worker.training.data.batches import choose_layout
from worker.training.dry_run.cuda_kernels import cuda_kernels
from worker.training.dry_run.fake_model import build_base, fake, make_fake, read_config
from worker.training.dry_run.memory_tracker import Category, MemoryTracker, Moment
from worker.training.loop.optimizer import build_optimizer
from worker.training.model import attention
from worker.training.model.fused import fuse
from worker.training.model.gradients import clip_gradients, gradient_norm
from worker.training.model.initialization import initial_tensors
from worker.training.model.loading import (
    LoadedModel,
    decoder_layers,
    make_trainable,
    takes_varlen_attention,
    use_varlen_attention,
)
from worker.training.model.lora import cast_tensors
from worker.training.objectives.objective import Batch, Objective
from worker.training.objectives.registry import OBJECTIVES

Kind = Literal["cuda", "cpu"]
_ATTENTION = ("sdpa", "eager", VARLEN_FLASH)
STEPS = 2  # the first makes the optimizer's state
_MICRO_BATCHES = 2  # of an accumulated step: all but the first find gradients, and all of those are alike
HYPERPARAMETERS = Hyperparameters(n_epochs=1, learning_rate=1e-4, weight_decay=0.01)
_PAGED_FROM = 100_000  # elements: bitsandbytes' get_state_buffer pages states of this many and more


@dataclass(frozen=True)
class DryRun:
    """What one training step of a plan holds: bytes as CUDA's allocator counts them, cuBLAS's workspaces apart."""

    static: dict[Category, int]  # between steps
    moments: tuple[Moment, ...]  # the highest of each phase, in the order of a step
    layers: int  # decoder layers that it is about
    sampled_layers: tuple[int, ...]  # decoder layers that ran; the rest is extrapolated where there are two

    @property
    def peak(self) -> Moment:
        """The highest moment of all."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at the peak."""
        return self.peak.total_bytes

    @property
    def static_bytes(self) -> int:
        """Bytes alive between steps."""
        return sum(self.static.values())


def dry_run(
    config: Mapping[str, Any], setup: TrainingSetup, kind: Kind = "cuda", sample: tuple[int, int] | None = None
) -> DryRun:
    """Dry-run the step that `setup` describes on the longest micro-batch, every token of it trained.

    `sample` names two numbers of decoder layers: both are dry-run and a line through them gives the whole model,
    phase by phase, which is exact where all layers are alike. Raises InvalidModelError for an architecture that cannot
    be built and TrainingError for a setup that cannot run.
    """
    _check(setup, kind)
    layers = int(read_config(config).get_text_config().num_hidden_layers)
    if sample is None or layers <= max(sample):
        return _dry_run(config, setup, kind, None)
    few, more = (_dry_run(config, setup, kind, count) for count in sorted(sample))
    return _extrapolate(few, more, layers)


def _check(setup: TrainingSetup, kind: Kind) -> None:
    if kind == "cuda" and setup.attn_implementation not in _ATTENTION:
        raise TrainingError(
            f"A dry run knows the attention of {', '.join(_ATTENTION)}, not of {setup.attn_implementation}.",
            code="unsupported_setup",
        )


def _dry_run(config: Mapping[str, Any], setup: TrainingSetup, kind: Kind, layers: int | None) -> DryRun:
    base = build_base(read_config(config, layers), setup)
    with torch.device("meta"):
        loaded = make_trainable(base, setup, torch.device("cpu"))
    with _fake_tensors(kind, packing=setup.packing) as memory:
        statistics = make_fake(loaded.model, getattr(torch, setup.dtype))
        trained = [(name, parameter) for name, parameter in loaded.model.named_parameters() if parameter.requires_grad]
        loaded = replace(loaded, parameters=trained)
        fuse(loaded.causal_model, setup)
        if takes_varlen_attention(setup, kind):
            loaded = use_varlen_attention(loaded)
        memory.assign([*loaded.model.parameters(), *loaded.model.buffers(), *statistics], Category.BASE)
        if setup.method is not Method.FULL:
            started = initial_tensors(loaded.model).values()
            casts = cast_tensors(loaded.model)
            memory.assign([*(parameter for _, parameter in trained), *started, *casts], Category.ADAPTERS)
        with unset_fake_temporarily():
            layout = choose_layout(is_varlen=loaded.is_varlen)
            batch = OBJECTIVES[setup.objective].full_micro_batch(setup, layout)
        batch = batch.sent(fake)
        memory.assign(batch.tensors, Category.INPUTS)
        static = _run_steps(loaded, batch, setup, memory, pages=kind == "cuda" and "paged" in setup.optimizer)
        depth = len(decoder_layers(loaded.causal_model))
        return DryRun(static, tuple(memory.moments.values()), depth, (depth,))


@contextmanager
def _fake_tensors(kind: Kind, *, packing: bool) -> Iterator[MemoryTracker]:
    attention._bias.cache_clear()  # neither side may see the other's tensors
    with ExitStack() as stack:
        stack.callback(attention._bias.cache_clear)
        if not packing:
            # Whether rows are packed is read off their positions, and fake ones have none: transformers then builds a
            # mask to be safe.
            stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda _positions: None))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        memory = stack.enter_context(MemoryTracker())
        if kind == "cuda":
            stack.enter_context(cuda_kernels())
        yield memory


def _run_steps(
    loaded: LoadedModel, batch: Batch, setup: TrainingSetup, memory: MemoryTracker, *, pages: bool
) -> dict[Category, int]:
    """Two whole steps of `loop.optimizer_step`, and an evaluation. Returns what is alive between the two."""
    for _, parameter in loaded.parameters:
        parameter.register_post_accumulate_grad_hook(lambda p: memory.assign([p.grad], Category.GRADIENTS))
    _mark_layers(loaded, memory)
    objective = OBJECTIVES[setup.objective]
    with unset_fake_temporarily():  # bitsandbytes reads values from the tables that it makes
        optimizer = build_optimizer(loaded.parameters, setup, HYPERPARAMETERS)
    for step in range(STEPS):
        memory.moments.clear()  # the first step only makes the state; no moment of it is higher
        for _ in range(min(setup.gradient_accumulation_steps, _MICRO_BATCHES)):
            memory.enter("forward")
            loss = objective.loss(loaded, batch, 1.0)
            memory.enter("loss backward")
            loss.value.backward()
            del loss
        memory.enter("optimizer step")
        clip_gradients(loaded.parameters, HYPERPARAMETERS.max_grad_norm, gradient_norm(loaded.parameters))
        optimizer.step()
        if step == 0:
            _take_states(optimizer, memory, pages=pages)
        optimizer.zero_grad(set_to_none=True)
    memory.enter(None)
    static = memory.bytes_now()
    _evaluate(objective, loaded, batch, memory)
    return static


def _evaluate(objective: type[Objective[Any, Any]], loaded: LoadedModel, batch: Batch, memory: MemoryTracker) -> None:
    """The loss of one batch without gradients."""
    loaded.model.eval()
    loaded.backbone.register_forward_hook(lambda *_: memory.enter(EVALUATION_LOSS))
    memory.enter(EVALUATION)
    with torch.inference_mode():
        objective.loss(loaded, batch, 1.0)
    memory.enter(None)


def _mark_layers(loaded: LoadedModel, memory: MemoryTracker) -> None:
    """Enter a phase where the gradient reaches a decoder layer's output, and where it leaves the first layer."""
    layers = decoder_layers(loaded.causal_model)

    def mark(output: torch.Tensor, name: str) -> None:
        if output.requires_grad:
            output.register_hook(lambda _gradient: memory.enter(name))

    def after(name: str) -> Any:
        return lambda _layer, _inputs, outputs: mark(outputs[0] if isinstance(outputs, tuple) else outputs, name)

    last = len(layers) - 1
    for index, layer in enumerate(layers):
        place = "last" if index == last else "first" if index == 0 else "a middle"
        layer.register_forward_hook(after(f"backward of {place} layer"))


def _take_states(optimizer: torch.optim.Optimizer, memory: MemoryTracker, *, pages: bool) -> None:
    """Count the optimizer's state as such, or not at all where bitsandbytes would page it out of the device."""
    for state in optimizer.state.values():
        tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
        memory.assign(tensors, Category.OPTIMIZER)
        if pages:
            memory.forget(tensor for tensor in tensors if tensor.numel() >= _PAGED_FROM)


def _extrapolate(few: DryRun, more: DryRun, layers: int) -> DryRun:
    (low,), (high,) = few.sampled_layers, more.sampled_layers

    def line(at_low: Mapping[Category, int], at_high: Mapping[Category, int]) -> dict[Category, int]:
        return {
            category: at_low.get(category, 0)
            + (at_high.get(category, 0) - at_low.get(category, 0)) * (layers - low) // (high - low)
            for category in Category
            if category in at_low or category in at_high
        }

    named = {moment.phase: moment for moment in few.moments}
    moments = []
    for moment in more.moments:
        other = named.get(moment.phase)
        if other is not None:
            size = line(other.bytes_by_category, moment.bytes_by_category)
            moments.append(Moment(moment.phase, moment.operator, size))
    return DryRun(line(few.static, more.static), tuple(moments), layers, (low, high))
