"""Curves of runs: what a chart draws, and the same as plain lines for readers without scripts."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from core.events.series import Point
from planner.objectives import ObjectiveSpec

WIDTH, HEIGHT = 1000, 240  # of the drawing
_MARGIN = 10
_FIRST, _SECOND = "--accent", "--term-loss"  # colours
_OTHERS = ("learning_rate", "tokens_per_second", "memory_bytes")  # of every step, whatever the objective


@dataclass(frozen=True)
class Field:
    """A curve: where its values stand in a row, behind the step, and how they read."""

    at: int
    label: str
    format: str  # of the formats that run-chart.js knows
    color: str = _FIRST
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over each other."""

    title: str
    fields: tuple[Field, ...]

    @property
    def plain(self) -> list[dict[str, object]]:
        """The fields as JSON has them."""
        return [asdict(field) for field in self.fields]


def columns_of(spec: ObjectiveSpec) -> tuple[str, ...]:
    """The names of a row's values, behind the step."""
    return (*(metric.name for metric in spec.metrics), *_OTHERS)


def row_of(spec: ObjectiveSpec, one: Point) -> list[float | None]:
    """A point as its charts take it."""
    return [one.step, *(one.values.get(name) for name in columns_of(spec))]


def charts_of(spec: ObjectiveSpec) -> list[Chart]:
    """A chart for each of the objective's metrics, in training and on held-out rows, the loss first; then the rest."""
    charts = [
        Chart(
            title,
            tuple(
                Field(
                    at=at,
                    label="Validation" if metric.is_held_out else "Training",
                    format="share" if metric.is_share else "loss",
                    color=_SECOND if metric.is_held_out else _FIRST,
                    dots=metric.is_held_out,
                )
                for at, metric in enumerate(spec.metrics, 1)
                if metric.title == title
            ),
        )
        for title in dict.fromkeys(metric.title for metric in spec.metrics)
    ]
    first = len(spec.metrics) + 1
    others = (("Learning rate", "rate"), ("Tokens per second", "speed"), ("Memory in use", "memory"))
    return charts + [Chart(title, (Field(at, title, kind),)) for at, (title, kind) in enumerate(others, first)]


def compared(left: Sequence[Point], right: Sequence[Point]) -> list[list[float | None]]:
    """Rows of step and four losses: training and validation of the left run, then of the right."""
    rows: dict[int, list[float | None]] = {}
    for column, points in ((1, left), (3, right)):
        for one in points:
            row = rows.setdefault(one.step, [one.step, None, None, None, None])
            row[column + one.is_evaluation] = one.loss
    return [rows[step] for step in sorted(rows)]


def comparison(left: str, right: str) -> Chart:
    """The chart of two runs' losses, by their names."""
    return Chart(
        "Loss",
        (
            Field(1, left, "loss"),
            Field(2, "– validation", "loss", dots=True),
            Field(3, right, "loss", _SECOND),
            Field(4, "– validation", "loss", _SECOND, dots=True),
        ),
    )


def lines_of(curves: Iterable[tuple[str, Sequence[Point]]]) -> list[tuple[str, str]]:
    """Each named curve as the points of a polyline, all to one scale; those without a loss are empty."""
    known = [(name, [(one.step, loss) for one in points if (loss := one.loss) is not None]) for name, points in curves]
    everything = [place for _, places in known for place in places]
    if not everything:
        return [(name, "") for name, _ in known]
    losses = [loss for _, loss in everything]
    low, high, last = min(losses), max(losses), max(1, *(step for step, _ in everything))
    scale = (HEIGHT - 2 * _MARGIN) / (high - low or 1)
    return [
        (name, " ".join(f"{WIDTH * step / last:.1f},{_MARGIN + scale * (high - loss):.1f}" for step, loss in places))
        for name, places in known
    ]


def halves(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Steps and evaluations apart, by the names of their lines."""
    steps, evaluations = ([one for one in points if one.is_evaluation is wanted] for wanted in (False, True))
    return [("train", steps), ("valid", evaluations)]


def latest(points: Sequence[Point]) -> tuple[Point | None, Point | None]:
    """The newest step and the newest evaluation."""
    (_, steps), (_, evaluations) = halves(points)
    return (steps[-1] if steps else None), (evaluations[-1] if evaluations else None)
