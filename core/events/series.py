"""A job's numbers as curves: few enough points to draw, the peaks among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from core.events import queries
from planner.objectives import TRAIN_LOSS, VALID_LOSS

MOST_POINTS = 1000  # more than a chart has pixels to tell apart


@dataclass(frozen=True)
class Point:
    """One optimizer step, or one evaluation behind it."""

    step: int
    values: Mapping[str, float | None] = field(default_factory=dict)  # of the event's data, by name

    @property
    def is_evaluation(self) -> bool:
        """Whether it is of the held-out rows."""
        return self.values.get(VALID_LOSS) is not None

    @property
    def loss(self) -> float | None:
        """Of the held-out rows where it is an evaluation, else of the step; None of one that was skipped."""
        return self.values.get(VALID_LOSS) if self.is_evaluation else self.values.get(TRAIN_LOSS)


def point(data: Mapping[str, Any]) -> Point:
    """The point within the data of a metrics event. An evaluation has no pace, and no step of its own."""
    values = {name: value for name, value in data.items() if name != "step"}
    if values.get(VALID_LOSS) is not None:
        values |= {"learning_rate": None, "tokens_per_second": None}
    return Point(int(data["step"]), values)


def curve(session: Session, job_id: str, most: int = MOST_POINTS) -> list[Point]:
    """The job's points by step: all of them, or about `most` with the extremes of the loss kept."""
    points = [point(data) for data in queries.metrics(session, job_id)]
    steps = [one for one in points if not one.is_evaluation]
    evaluations = [one for one in points if one.is_evaluation]
    kept = [*decimate(steps, most), *evaluations[:: len(evaluations) // most + 1]]
    return sorted(kept, key=lambda one: (one.step, one.is_evaluation))


def decimate(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points: of each of equal stretches the lowest and the highest loss, and both ends."""
    if len(points) <= most:
        return list(points)
    ends, inner = (points[0], points[-1]), points[1:-1]
    stretches = max(1, (most - 2) // 2)
    kept: list[Point] = []
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        known = [one for one in stretch if one.loss is not None] or stretch[:1]
        extremes = {id(one): one for one in (min(known, key=_height), max(known, key=_height))} if known else {}
        kept += sorted(extremes.values(), key=lambda one: one.step)
    return [ends[0], *kept, ends[1]]


def _height(one: Point) -> float:
    return one.loss if one.loss is not None else 0.0
