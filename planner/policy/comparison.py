"""The methods side by side: the best run of each, whether it fits or not, so that a choice can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.devices import Device
from planner.errors import InvalidSetupError
from planner.memory.estimate import MemoryEstimate
from planner.options import RequestedConfig
from planner.policy.candidates import (
    LADDER,
    Candidate,
    Question,
    candidates_on,
    usable_devices,
)
from planner.policy.choice import choose_run
from planner.setup import Method, TrainingSetup


@dataclass(frozen=True)
class MethodOutlook:
    """The run that one method would be: the one the policy takes, or where none fits the one nearest to it."""

    method: Method
    setup: TrainingSetup
    device: Device
    memory: MemoryEstimate
    fits: bool
    seconds: float
    credits: int


def compare_methods(question: Question) -> tuple[MethodOutlook, ...]:
    """Every method on these devices as the rest is asked for, from the least to the most compressed.

    Says what `policy.plan` would say with each method pinned. What is asked of the adapter does not bear on full
    fine-tuning. A method that was not dry-run, where estimates come from dry runs, is left out.
    """
    usable = usable_devices(question)
    outlooks = (
        _outlook(replace(question, requested=_pinned(question.requested, method)), usable, method) for method in LADDER
    )
    return tuple(outlook for outlook in outlooks if outlook is not None)


def _pinned(requested: RequestedConfig, method: Method) -> RequestedConfig:
    pinned = replace(requested, method=method)
    return pinned.without_adapter() if method is Method.FULL else pinned


def _outlook(question: Question, devices: Sequence[Device], method: Method) -> MethodOutlook | None:
    try:
        candidates = [candidate for device in devices for candidate in candidates_on(question, device)]
    except InvalidSetupError:
        return None
    if not candidates:
        return None
    best: Candidate = choose_run(question, candidates) or max(candidates, key=lambda one: one.headroom_bytes)
    return MethodOutlook(
        method=method,
        setup=best.setup,
        device=best.device,
        memory=best.memory,
        fits=best.fits,
        seconds=best.speed.seconds,
        credits=best.quote.credits,
    )
