"""Predicted memory as a bar that adds up: what is shown of an estimate whose phases take turns."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.memory.estimate import MemoryEstimate
from planner.policy.comparison import MethodOutlook

WIDTH = 1000  # of every bar, in the units of its drawing

LABELS = {
    "weights": "Weights",
    "adapters": "Adapters",
    "optimizer": "Optimizer",
    "activations": "Activations and gradients",
    "loss": "Loss",
    "overhead": "Overhead",
    "bound": "Safety margin",
}


@dataclass(frozen=True)
class Term:
    """One stretch of the bar. `x` and `width` are in units of the drawing."""

    name: str
    label: str
    size_bytes: int
    x: float
    width: float


@dataclass(frozen=True)
class MemoryBar:
    """A run's memory against what is free. `free_x` is where free memory ends, in units of the drawing."""

    terms: tuple[Term, ...]
    required_bytes: int
    free_bytes: int
    free_x: float


@dataclass(frozen=True)
class MethodBar:
    """One method's outlook and its bar, to the same scale as the others'."""

    outlook: MethodOutlook
    bar: MemoryBar


def terms_of(memory: MemoryEstimate) -> dict[str, int]:
    """The estimate in seven terms that add up to `required_bytes`.

    The peak is the static part and the largest of phases that take turns. Where the loss is that phase it is shown
    apart; all that is not weights, adapters or optimizer state is the working memory of the step. What runs outside of
    the allocator, and what finished runs corrected, is overhead.
    """
    kept = memory.base_weights_bytes + memory.adapters_bytes + memory.optimizer_state_bytes
    working = max(0, memory.peak_allocated_bytes - memory.static_allocated_bytes)
    loss = min(memory.loss_phase_bytes, max(0, working - memory.saved_activations_bytes))
    terms = {
        "weights": memory.base_weights_bytes,
        "adapters": memory.adapters_bytes,
        "optimizer": memory.optimizer_state_bytes,
        "activations": working - loss,
        "loss": loss,
    }
    overhead = memory.device_bytes - kept - working
    if overhead < 0:  # finished runs needed less than the sum of what was predicted
        share = memory.device_bytes / (kept + working)
        terms = {name: int(size * share) for name, size in terms.items()}
        overhead = memory.device_bytes - sum(terms.values())
    return {**terms, "overhead": overhead, "bound": memory.bound_bytes}


def draw(memory: MemoryEstimate, free_bytes: int, whole_bytes: int) -> MemoryBar:
    """The bar, `whole_bytes` long."""
    terms, x = [], 0.0
    for name, size in terms_of(memory).items():
        width = WIDTH * size / whole_bytes
        terms.append(Term(name, LABELS[name], size, round(x, 2), round(width, 2)))
        x += width
    return MemoryBar(tuple(terms), memory.required_bytes, free_bytes, round(WIDTH * free_bytes / whole_bytes, 2))


def draw_methods(methods: Sequence[MethodOutlook]) -> list[MethodBar]:
    """Every method's bar, to one scale that holds the longest and what is free."""
    if not methods:
        return []
    whole = max(max(one.memory.required_bytes, one.device.free_bytes) for one in methods)
    return [MethodBar(one, draw(one.memory, one.device.free_bytes, round(whole * 1.01))) for one in methods]
