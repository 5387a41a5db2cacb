"""The rows of metrics.csv, and what follows from them alone: a resumed run decides as the uninterrupted one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from planner.objectives import TRAIN_LOSS, VALID_LOSS


@dataclass(frozen=True)
class MetricsRow:
    """One line of metrics.csv. Step 0 is the evaluation before training; a skipped step has no training metrics."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)  # by the names of planner/objectives.py
    learning_rate: float | None = None  # that the step used

    @property
    def train_loss(self) -> float | None:
        """Of the step's micro-batches; None where it was skipped."""
        return self.metrics.get(TRAIN_LOSS)

    @property
    def valid_loss(self) -> float | None:
        """Of the held-out rows behind the step; None where they were not evaluated there."""
        return self.metrics.get(VALID_LOSS)

    def with_evaluation(self, metrics: Mapping[str, float]) -> "MetricsRow":
        """The row of the same step with what an evaluation behind it found."""
        return replace(self, metrics={**self.metrics, **metrics})

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "MetricsRow":
        """The row as JSON has it, also from releases that knew four metrics, a field for each."""
        if "metrics" in plain:
            return cls(**plain)
        names = {
            "train_loss": TRAIN_LOSS,
            "train_accuracy": "train_mean_token_accuracy",
            "valid_loss": VALID_LOSS,
            "valid_mean_token_accuracy": "valid_mean_token_accuracy",
        }
        found = {new: plain[old] for old, new in names.items() if plain.get(old) is not None}
        return cls(plain["step"], found, plain.get("learning_rate"))


def best_evaluation(rows: Sequence[MetricsRow]) -> MetricsRow | None:
    """The step with the lowest validation loss, the earliest of equals; never the evaluation before training."""
    evaluated = [(row.valid_loss, row.step, row) for row in rows if row.step > 0 and row.valid_loss is not None]
    return min(evaluated)[2] if evaluated else None


def has_stopped_improving(rows: Sequence[MetricsRow], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no lower validation loss than an earlier one."""
    best = best_evaluation(rows)
    return best is not None and sum(row.valid_loss is not None for row in rows if row.step > best.step) >= patience
