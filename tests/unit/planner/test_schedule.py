"""No optimizer step is wasted at rate zero, and the evaluations that are billed are those that happen."""

import pytest

from planner.errors import InvalidSetupError
from planner.explanations import describe_schedule
from planner.schedule import evaluations, is_evaluated_after, learning_rate, warmup_steps
from planner.setup import Hyperparameters

PEAK = 1e-3


def rates(total_steps: int, warmup_ratio: float, name: str = "cosine") -> list[float]:
    hyperparameters = Hyperparameters(1, PEAK, warmup_ratio=warmup_ratio, lr_scheduler_type=name)
    return [learning_rate(step, total_steps, hyperparameters) for step in range(total_steps)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 5, 37, 400])
def test_every_step_has_a_rate_and_one_has_the_peak(total_steps: int, warmup_ratio: float, name: str) -> None:
    found = rates(total_steps, warmup_ratio, name)
    assert all(0 < rate <= PEAK for rate in found)
    assert max(found) == PEAK
    rising = warmup_steps(total_steps, warmup_ratio)
    assert found[:rising] == pytest.approx([PEAK * (step + 1) / rising for step in range(rising)])
    assert found[rising:] == sorted(found[rising:], reverse=True)


def test_a_cosine_is_halfway_down_in_the_middle() -> None:
    assert rates(10, 0.0)[5] == pytest.approx(PEAK / 2)
    assert rates(10, 0.0, "linear")[9] == pytest.approx(PEAK / 10)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InvalidSetupError, match="spiral"):
        rates(3, 0.0, "spiral")


@pytest.mark.parametrize(("n_epochs", "passes"), [(1, 2), (3, 4), (6, 7), (10, 11), (11, 7), (30, 11), (100, 11)])
def test_evaluations_are_bounded_and_include_the_first_and_the_last(n_epochs: int, passes: int) -> None:
    assert evaluations(n_epochs) == passes
    assert is_evaluated_after(0, n_epochs)
    assert is_evaluated_after(n_epochs, n_epochs)


@pytest.mark.parametrize(
    ("total_steps", "warmup_ratio", "sentence"),
    [
        (1, 0.1, "is 0.001 in the only step"),
        (5, 0.9, "rises over 4 of 5 steps to 0.001 and never falls, since the warmup leaves one step"),
        (5, 0.1, "starts at 0.001 and falls on a cosine"),
        (100, 0.1, "rises over 10 of 100 steps to 0.001 and falls on a cosine"),
    ],
)
def test_the_sentence_is_true_of_the_rates(total_steps: int, warmup_ratio: float, sentence: str) -> None:
    assert describe_schedule(Hyperparameters(1, PEAK, warmup_ratio=warmup_ratio), total_steps) == sentence
