"""Thinning a curve keeps what one looks for in it."""

from hypothesis import given
from hypothesis import strategies as st

from core.events.series import Point, decimate, point

losses = st.lists(st.none() | st.floats(0.0, 20.0), min_size=1, max_size=3000)


def points(values: list[float | None]) -> list[Point]:
    return [Point(step, {"train_loss": loss}) for step, loss in enumerate(values, start=1)]


@given(losses, st.integers(4, 200))
def test_few_points_in_order_with_the_ends_and_the_extremes(values: list[float | None], most: int) -> None:
    whole = points(values)
    kept = decimate(whole, most)
    assert len(kept) <= max(most, 4)
    assert [one.step for one in kept] == sorted({one.step for one in kept})
    assert (kept[0], kept[-1]) == (whole[0], whole[-1])
    known = [loss for loss in values if loss is not None]
    if known:
        drawn = [one.loss for one in kept if one.loss is not None]
        assert (min(drawn), max(drawn)) == (min(known), max(known))


def test_a_short_run_is_drawn_whole() -> None:
    whole = points([3.0, 2.0, 1.0])
    assert decimate(whole, 1000) == whole


def test_an_evaluation_says_nothing_of_pace_and_rate() -> None:
    step = {"train_loss": 2.0, "learning_rate": 3e-4, "tokens_per_second": 50.0}
    assert point({"step": 1, **step}) == Point(1, step)
    evaluation = point({"step": 1, **step, "train_loss": None, "valid_loss": 2.5})
    assert (evaluation.step, evaluation.loss, evaluation.is_evaluation) == (1, 2.5, True)
    assert {name for name, value in evaluation.values.items() if value is not None} == {"valid_loss"}
