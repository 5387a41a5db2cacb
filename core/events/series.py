"""A job's numbers as curves: few enough points to draw, the peaks among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from core.events import queries

MOST_POINTS = 1000  # more than a chart has pixels to tell apart


@dataclass(frozen=True)
class Point:
    """One optimizer step, or one evaluation where `valid_loss` is set."""

    step: int
    train_loss: float | None
    valid_loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    memory_bytes: int | None


def point(data: Mapping[str, Any]) -> Point:
    """The point within the data of a metrics event. An evaluation has no pace, and no step of its own."""
    is_evaluation = data.get("valid_loss") is not None
    return Point(
        step=int(data["step"]),
        train_loss=data.get("train_loss"),
        valid_loss=data.get("valid_loss"),
        learning_rate=None if is_evaluation else data.get("learning_rate"),
        tokens_per_second=None if is_evaluation else data.get("tokens_per_second"),
        memory_bytes=data.get("memory_bytes"),
    )


def curve(session: Session, job_id: str, most: int = MOST_POINTS) -> list[Point]:
    """The job's points by step: all of them, or about `most` with the extremes of the loss kept."""
    points = [point(data) for data in queries.metrics(session, job_id)]
    steps = [one for one in points if one.valid_loss is None]
    evaluations = [one for one in points if one.valid_loss is not None]
    kept = [*decimate(steps, most), *evaluations[:: len(evaluations) // most + 1]]
    return sorted(kept, key=lambda one: (one.step, one.valid_loss is not None))


def decimate(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` of the points: of each of equal stretches the lowest and the highest loss, and both ends."""
    if len(points) <= most:
        return list(points)
    ends, inner = (points[0], points[-1]), points[1:-1]
    stretches = max(1, (most - 2) // 2)
    kept: list[Point] = []
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        known = [one for one in stretch if one.train_loss is not None] or stretch[:1]
        extremes = {id(one): one for one in (min(known, key=_loss), max(known, key=_loss))} if known else {}
        kept += sorted(extremes.values(), key=lambda one: one.step)
    return [ends[0], *kept, ends[1]]


def _loss(one: Point) -> float:
    return one.train_loss if one.train_loss is not None else 0.0
