"""When a run's learning rate rises and falls, and when it is evaluated: what the plan says and the trainer does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner import constants as c
from planner.reasons import Reason, reason
from planner.setup import Hyperparameters, LRScheduler

MIN_LR_RATE = 0.1  # of the peak, where `cosine_with_min_lr` ends


@dataclass(frozen=True)
class _Decay:
    """What a schedule does behind its warmup. `factor`: of the peak, by the share of those steps that is done."""

    factor: Callable[[float], float]
    warms_up: bool = True


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


_DECAYS = {
    LRScheduler.COSINE: _Decay(_cosine),
    LRScheduler.LINEAR: _Decay(lambda done: 1.0 - done),
    LRScheduler.CONSTANT: _Decay(lambda _: 1.0, warms_up=False),
    LRScheduler.CONSTANT_WITH_WARMUP: _Decay(lambda _: 1.0),
    LRScheduler.COSINE_WITH_MIN_LR: _Decay(lambda done: MIN_LR_RATE + (1.0 - MIN_LR_RATE) * _cosine(done)),
}


def warmup_steps(total_steps: int, hyperparameters: Hyperparameters) -> int:
    """Optimizer steps in which the rate rises: at least one step is left at the peak or behind it."""
    if not _DECAYS[hyperparameters.lr_scheduler_type].warms_up:
        return 0
    return min(math.ceil(total_steps * hyperparameters.warmup_ratio), total_steps - 1)


def learning_rate(step: int, total_steps: int, hyperparameters: Hyperparameters) -> float:
    """Rate of the optimizer step `step`, counted from 0: linear warmup to the peak, then the schedule's decay.

    Above zero in every step: the rise starts at one part of the peak, where transformers' own schedules waste their
    first step at zero, and the decay would reach zero one step behind the last.
    """
    rising = warmup_steps(total_steps, hyperparameters)
    if step < rising:
        return hyperparameters.learning_rate * (step + 1) / rising
    done = (step - rising) / (total_steps - rising)
    return hyperparameters.learning_rate * _DECAYS[hyperparameters.lr_scheduler_type].factor(done)


def describe_schedule(hyperparameters: Hyperparameters, total_steps: int) -> Reason:
    """How the learning rate moves over the steps that a run has."""
    peak, rising = hyperparameters.learning_rate, warmup_steps(total_steps, hyperparameters)
    if total_steps == 1:
        return reason("rate_in_only_step", peak=peak)
    name = hyperparameters.lr_scheduler_type
    never_falls = rising == total_steps - 1 and _DECAYS[name].factor(0.5) < 1.0
    then = (reason("rate_never_falls" if never_falls else f"decay_{name}"),)
    if rising > 1:
        return reason("rate_rises", rising=rising, steps=total_steps, peak=peak, then=then)
    return reason("rate_starts", peak=peak, then=then)


def is_evaluated_after(epoch: int, n_epochs: int) -> bool:
    """Whether the held-out rows are scored behind this epoch, counted from 1; 0: before the first step."""
    return epoch == n_epochs or epoch % -(-n_epochs // c.MOST_EVALUATIONS) == 0


def evaluations(n_epochs: int) -> int:
    """Passes over the held-out rows of a whole run, the one before the first step among them."""
    return sum(is_evaluated_after(epoch, n_epochs) for epoch in range(n_epochs + 1))
