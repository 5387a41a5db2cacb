"""When a run's learning rate rises and falls, and when it is evaluated: what the plan says and the trainer does."""

import math

from planner import constants as c
from planner.errors import InvalidSetupError
from planner.setup import Hyperparameters

SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Optimizer steps in which the rate rises: at least one step is left at the peak or behind it."""
    return min(math.ceil(total_steps * warmup_ratio), total_steps - 1)


def learning_rate(step: int, total_steps: int, hyperparameters: Hyperparameters) -> float:
    """Rate of the optimizer step `step`, counted from 0: linear warmup to the peak, then the named decay.

    Above zero in every step: the rise starts at one part of the peak, where transformers' own schedules waste their
    first step at zero, and the decay would reach zero one step behind the last. Raises InvalidSetupError for a
    schedule that is not known.
    """
    rising = warmup_steps(total_steps, hyperparameters.warmup_ratio)
    if step < rising:
        return hyperparameters.learning_rate * (step + 1) / rising
    progress = (step - rising) / (total_steps - rising)
    if hyperparameters.lr_scheduler_type == "cosine":
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif hyperparameters.lr_scheduler_type == "linear":
        factor = 1.0 - progress
    elif hyperparameters.lr_scheduler_type in ("constant", "constant_with_warmup"):
        factor = 1.0
    else:
        raise InvalidSetupError(
            f"The schedule {hyperparameters.lr_scheduler_type!r} is not known. Choose one of: {', '.join(SCHEDULES)}."
        )
    return hyperparameters.learning_rate * factor


def is_evaluated_after(epoch: int, n_epochs: int) -> bool:
    """Whether the held-out rows are scored behind this epoch, counted from 1; 0: before the first step."""
    return epoch == n_epochs or epoch % -(-n_epochs // c.MOST_EVALUATIONS) == 0


def evaluations(n_epochs: int) -> int:
    """Passes over the held-out rows of a whole run, the one before the first step among them."""
    return sum(is_evaluated_after(epoch, n_epochs) for epoch in range(n_epochs + 1))
