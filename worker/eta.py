"""How fast a run goes, and how long it will still take."""

import time

from worker.protocol import MetricsReport, Phase


class Eta:
    """Follows a run's phases and steps. Evaluation and samples after training are taken to last as long as before."""

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self._before_since: float | None = None
        self._before_seconds = 0.0
        self._first: tuple[float, int] | None = None

    def enter(self, phase: Phase) -> None:
        """A phase starts."""
        now = time.monotonic()
        if phase in (Phase.EVALUATING, Phase.SAMPLING) and self._first is None:
            self._before_since = self._before_since or now
        elif phase is Phase.TRAINING and self._before_since is not None:
            self._before_seconds += now - self._before_since
            self._before_since = None

    def seconds_left(self, report: MetricsReport) -> float | None:
        """Seconds until the run ends, by the pace so far; None before the second step."""
        if report.valid_loss is None:
            self.tokens_per_second = report.tokens_per_second
        now = time.monotonic()
        if self._first is None:
            self._first = now, report.step
            return None
        since, first_step = self._first
        if report.step <= first_step:
            return None
        per_step = (now - since) / (report.step - first_step)
        return per_step * (report.total_steps - report.step) + self._before_seconds
