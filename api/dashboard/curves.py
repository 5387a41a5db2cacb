"""Curves as plain lines, for readers without scripts."""

from collections.abc import Iterable, Sequence

from core.events.series import Point

WIDTH, HEIGHT = 1000, 240  # of the drawing
_MARGIN = 10


def lines_of(curves: Iterable[tuple[str, Sequence[Point]]]) -> list[tuple[str, str]]:
    """Each named curve as the points of a polyline, all to one scale; those without a loss are empty."""
    known = [
        (name, [(one.step, loss) for one in points if (loss := _loss(one)) is not None]) for name, points in curves
    ]
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


def _loss(one: Point) -> float | None:
    return one.train_loss if one.valid_loss is None else one.valid_loss
