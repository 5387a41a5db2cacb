"""When silence means that a training child hangs: a deadlock, a dead GPU, a file system that does not answer."""

import time
from collections.abc import Callable, Sequence

from worker.protocol import MetricsReport, Phase, PhaseReport, Report

# A step may take many times its like where the machine is busy or the longest rows come together.
STEPS_OF_SILENCE = 20


class Watchdog:
    """Follows what a child says. Times in seconds.

    Within training it takes the child for hung after `stall_seconds` and 20 times the slowest step so far without a
    word; in phases that have no steps, and before the first, after `silence_seconds`.
    """

    def __init__(
        self, stall_seconds: float, silence_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stall_seconds, self._silence_seconds = stall_seconds, silence_seconds
        self._clock = clock
        self._heard_at = clock()
        self._step_at: float | None = None
        self._slowest_step = 0.0
        self._has_steps = False

    def hear(self, batch: Sequence[Report]) -> None:
        """The child said this; nothing is no sign of life."""
        if not batch:
            return
        self._heard_at = now = self._clock()
        for said in batch:
            if isinstance(said, PhaseReport):
                self._has_steps, self._step_at = said.phase == Phase.TRAINING, None
            elif isinstance(said, MetricsReport) and said.valid_loss is None:
                if self._step_at is not None:
                    self._slowest_step = max(self._slowest_step, now - self._step_at)
                self._step_at = now

    def hung_for(self) -> float | None:
        """Seconds of silence, once there are too many; None before."""
        silence = self._clock() - self._heard_at
        return silence if silence > self._patience() else None

    def _patience(self) -> float:
        if not self._has_steps or not self._slowest_step:
            return max(self._silence_seconds, self._stall_seconds)
        return max(self._stall_seconds, STEPS_OF_SILENCE * self._slowest_step)
