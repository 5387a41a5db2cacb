"""When a run's learning rate rises and falls, and when it is evaluated: what the plan says and the trainer does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner import constants as c
from planner.setup import Hyperparameters, LRScheduler

MIN_LR_RATE = 0.1  # of the peak, where `cosine_with_min_lr` ends


@dataclass(frozen=True)
class _Decay:
    """What a schedule does behind its warmup. `factor`: of the peak, by the share of those steps that is done.

    `words` complete "The learning rate rises to 0.001 and …".
    """

    factor: Callable[[float], float]
    words: str
    warms_up: bool = True


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


_DECAYS = {
    LRScheduler.COSINE: _Decay(_cosine, "falls on a cosine"),
    LRScheduler.LINEAR: _Decay(lambda done: 1.0 - done, "falls on a line"),
    LRScheduler.CONSTANT: _Decay(lambda _: 1.0, "stays there", warms_up=False),
    LRScheduler.CONSTANT_WITH_WARMUP: _Decay(lambda _: 1.0, "stays there"),
    LRScheduler.COSINE_WITH_MIN_LR: _Decay(
        lambda done: MIN_LR_RATE + (1.0 - MIN_LR_RATE) * _cosine(done), "falls on a cosine to a tenth"
    ),
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


def describe_schedule(hyperparameters: Hyperparameters, total_steps: int) -> str:
    """How the learning rate moves over the steps that a run has, as what completes "The learning rate …"."""
    peak, rising = hyperparameters.learning_rate, warmup_steps(total_steps, hyperparameters)
    decay = _DECAYS[hyperparameters.lr_scheduler_type]
    if total_steps == 1:
        return f"is {peak:g} in the only step"
    start = f"rises over {rising:,} of {total_steps:,} steps to {peak:g}" if rising > 1 else f"starts at {peak:g}"
    if rising == total_steps - 1 and decay.factor(0.5) < 1.0:
        return f"{start} and never falls, since the warmup leaves one step"
    return f"{start} and {decay.words}"


def is_evaluated_after(epoch: int, n_epochs: int) -> bool:
    """Whether the held-out rows are scored behind this epoch, counted from 1; 0: before the first step."""
    return epoch == n_epochs or epoch % -(-n_epochs // c.MOST_EVALUATIONS) == 0


def evaluations(n_epochs: int) -> int:
    """Passes over the held-out rows of a whole run, the one before the first step among them."""
    return sum(is_evaluated_after(epoch, n_epochs) for epoch in range(n_epochs + 1))
