"""The rows of metrics.csv, and what follows from them alone: a resumed run decides as the uninterrupted one."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricsRow:
    """One line of metrics.csv. Step 0 is the evaluation before training; a skipped step has no train values."""

    step: int
    train_loss: float | None = None
    train_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None  # that the step used


def best_evaluation(rows: Sequence[MetricsRow]) -> MetricsRow | None:
    """The step with the lowest validation loss, the earliest of equals; never the evaluation before training."""
    evaluated = [(row.valid_loss, row.step, row) for row in rows if row.step > 0 and row.valid_loss is not None]
    return min(evaluated)[2] if evaluated else None


def has_stopped_improving(rows: Sequence[MetricsRow], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no lower validation loss than an earlier one."""
    best = best_evaluation(rows)
    return best is not None and sum(row.valid_loss is not None for row in rows if row.step > best.step) >= patience
