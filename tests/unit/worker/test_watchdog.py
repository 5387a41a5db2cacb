"""How long a trainer may be silent."""

from worker.protocol import MetricsReport, Phase, PhaseReport
from worker.watchdog import Watchdog


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, valid_loss: float | None = None) -> MetricsReport:
    metrics = {"train_loss": 1.0} if valid_loss is None else {"valid_loss": valid_loss}
    return MetricsReport(number, 100, metrics, 1e-4, 1.0, 100.0, 1, 100 * number, 0.1)


def trained_watchdog(clock: Clock, step_seconds: float) -> Watchdog:
    watchdog = Watchdog(stall_seconds=10, silence_seconds=1000, clock=clock)
    watchdog.hear([PhaseReport(Phase.TRAINING)])
    for number in (1, 2, 3):
        clock.now += step_seconds
        watchdog.hear([step(number)])
    return watchdog


def test_quick_steps_are_given_the_least_patience() -> None:
    clock = Clock()
    watchdog = trained_watchdog(clock, step_seconds=0.1)
    clock.now += 10
    assert watchdog.hung_for() is None
    clock.now += 1
    assert watchdog.hung_for() == 11


def test_slow_steps_are_given_a_multiple_of_their_own_time() -> None:
    clock = Clock()
    watchdog = trained_watchdog(clock, step_seconds=3)
    clock.now += 60
    assert watchdog.hung_for() is None
    clock.now += 1
    assert watchdog.hung_for() == 61


def test_work_without_steps_is_given_long() -> None:
    clock = Clock()
    watchdog = trained_watchdog(clock, step_seconds=0.1)
    watchdog.hear([PhaseReport(Phase.EVALUATING)])
    clock.now += 1000
    assert watchdog.hung_for() is None
    clock.now += 1
    assert watchdog.hung_for() == 1001


def test_the_pause_of_an_evaluation_is_no_slow_step() -> None:
    clock = Clock()
    watchdog = trained_watchdog(clock, step_seconds=0.1)
    watchdog.hear([PhaseReport(Phase.EVALUATING)])
    clock.now += 900
    watchdog.hear([step(3, valid_loss=1.0)])
    watchdog.hear([PhaseReport(Phase.TRAINING)])
    clock.now += 0.1
    watchdog.hear([step(4)])
    clock.now += 11
    assert watchdog.hung_for() == 11


def test_silence_is_not_heard() -> None:
    clock = Clock()
    watchdog = trained_watchdog(clock, step_seconds=0.1)
    clock.now += 11
    watchdog.hear([])
    assert watchdog.hung_for() == 11
