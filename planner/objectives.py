"""What can be learned, apart from how the base is adapted: what an objective costs a step and what is measured of it.

The trainer's side of each, from rows to the loss, is a folder of `worker/training/objectives`. Metrics are columns: the
child reports, checkpoints keep and metrics.csv, model cards and charts show the ones that stand here, by these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

TRAIN_LOSS, VALID_LOSS = "train_loss", "valid_loss"  # every objective has them; the lowest of the second is the best


class Objective(StrEnum):
    """What a run learns; OpenAI's `method.type`."""

    SUPERVISED = "supervised"  # the completion's tokens, each from what stands before it


@dataclass(frozen=True)
class Metric:
    """A number that is measured of an optimizer step, or of the held-out rows behind one."""

    name: str  # in events and checkpoints
    title: str  # of the chart that it is drawn in, with its counterpart on the other rows
    csv_name: str  # OpenAI's heading in metrics.csv
    is_held_out: bool  # measured on the held-out rows
    is_share: bool = False  # between 0 and 1, read as a percentage

    def shown(self, value: float) -> str:
        """The value as people read it in a table."""
        return f"{value:.1%}" if self.is_share else f"{value:.4f}"


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as planner, events, charts and files know it."""

    metrics: tuple[Metric, ...]  # in the order of metrics.csv
    sequences_per_example: int = 1  # that go through the model for each example of a batch

    @property
    def held_out(self) -> tuple[Metric, ...]:
        """The metrics of an evaluation."""
        return tuple(metric for metric in self.metrics if metric.is_held_out)


SPECS: Mapping[Objective, ObjectiveSpec] = {
    Objective.SUPERVISED: ObjectiveSpec(
        metrics=(
            Metric(TRAIN_LOSS, "Loss", "train_loss", is_held_out=False),
            Metric("train_mean_token_accuracy", "Token accuracy", "train_accuracy", is_held_out=False, is_share=True),
            Metric(VALID_LOSS, "Loss", "valid_loss", is_held_out=True),
            Metric(
                "valid_mean_token_accuracy",
                "Token accuracy",
                "valid_mean_token_accuracy",
                is_held_out=True,
                is_share=True,
            ),
        ),
    ),
}
