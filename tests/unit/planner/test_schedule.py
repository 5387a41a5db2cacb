"""No optimizer step is wasted at rate zero, and the evaluations that are billed are those that happen."""

import pytest

from planner.schedule import describe_schedule, evaluations, is_evaluated_after, learning_rate, warmup_steps
from planner.setup import Hyperparameters, LRScheduler
from planner.wording import sentence

PEAK = 1e-3


def asked(name: LRScheduler = LRScheduler.COSINE, warmup_ratio: float = 0.0) -> Hyperparameters:
    return Hyperparameters(1, PEAK, warmup_ratio=warmup_ratio, lr_scheduler_type=name)


def rates(total_steps: int, hyperparameters: Hyperparameters) -> list[float]:
    return [learning_rate(step, total_steps, hyperparameters) for step in range(total_steps)]


@pytest.mark.parametrize("name", LRScheduler)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 5, 37, 400])
def test_every_step_has_a_rate_and_one_has_the_peak(total_steps: int, warmup_ratio: float, name: LRScheduler) -> None:
    hyperparameters = asked(name, warmup_ratio)
    found = rates(total_steps, hyperparameters)
    assert all(0 < rate <= PEAK for rate in found)
    assert max(found) == PEAK
    rising = warmup_steps(total_steps, hyperparameters)
    assert found[:rising] == pytest.approx([PEAK * (step + 1) / rising for step in range(rising)])
    assert found[rising:] == sorted(found[rising:], reverse=True)


def test_a_cosine_is_halfway_down_in_the_middle() -> None:
    assert rates(10, asked())[5] == pytest.approx(PEAK / 2)
    assert rates(10, asked(LRScheduler.LINEAR))[9] == pytest.approx(PEAK / 10)
    assert rates(10, asked(LRScheduler.COSINE_WITH_MIN_LR))[5] == pytest.approx(PEAK * 0.55)


def test_a_constant_rate_is_constant_from_the_first_step_unless_a_warmup_is_asked_for() -> None:
    assert rates(4, asked(LRScheduler.CONSTANT, 0.5)) == [PEAK] * 4
    assert rates(4, asked(LRScheduler.CONSTANT_WITH_WARMUP, 0.5)) == [PEAK / 2, PEAK, PEAK, PEAK]


@pytest.mark.parametrize(("n_epochs", "passes"), [(1, 2), (3, 4), (6, 7), (10, 11), (11, 7), (30, 11), (100, 11)])
def test_evaluations_are_bounded_and_include_the_first_and_the_last(n_epochs: int, passes: int) -> None:
    assert evaluations(n_epochs) == passes
    assert is_evaluated_after(0, n_epochs)
    assert is_evaluated_after(n_epochs, n_epochs)


@pytest.mark.parametrize(
    ("total_steps", "hyperparameters", "said"),
    [
        (1, asked(warmup_ratio=0.1), "is 0.001 in the only step"),
        (
            5,
            asked(warmup_ratio=0.9),
            "rises over 4 of 5 steps to 0.001 and never falls, since the warmup leaves one step",
        ),
        (5, asked(warmup_ratio=0.1), "starts at 0.001 and falls on a cosine"),
        (100, asked(warmup_ratio=0.1), "rises over 10 of 100 steps to 0.001 and falls on a cosine"),
        (100, asked(LRScheduler.CONSTANT, 0.1), "starts at 0.001 and stays there"),
        (5, asked(LRScheduler.CONSTANT_WITH_WARMUP, 0.9), "rises over 4 of 5 steps to 0.001 and stays there"),
    ],
)
def test_the_sentence_is_true_of_the_rates(total_steps: int, hyperparameters: Hyperparameters, said: str) -> None:
    assert sentence(describe_schedule(hyperparameters, total_steps)) == said
