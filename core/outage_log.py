"""One line when something goes away, some while it stays away, and one when it is back: not one for every try."""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

__all__ = ["OutageLog"]

FIRST_INTERVAL_SECONDS, LONGEST_INTERVAL_SECONDS = 10.0, 600.0

log = structlog.get_logger()


class OutageLog:
    """What is logged about one thing that may be away. Safe to use from many threads.

    `away_event` is logged at the first failure and then at doubling intervals, `back_event` at the first success after.
    """

    def __init__(self, away_event: str, back_event: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._away_event, self._back_event = away_event, back_event
        self._clock = clock
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._interval_seconds = FIRST_INTERVAL_SECONDS
        self._next_line_at = 0.0

    def away(self, error: object, **facts: Any) -> None:
        """A try failed."""
        now = self._clock()
        with self._lock:
            if self._away_since is None:
                self._away_since, self._interval_seconds = now, FIRST_INTERVAL_SECONDS
            elif now < self._next_line_at:
                return
            else:
                self._interval_seconds = min(self._interval_seconds * 2, LONGEST_INTERVAL_SECONDS)
            self._next_line_at = now + self._interval_seconds
            seconds = now - self._away_since
        log.warning(self._away_event, error=str(error) or type(error).__name__, for_seconds=round(seconds, 1), **facts)

    def back(self, **facts: Any) -> None:
        """A try succeeded."""
        if self._away_since is None:  # the usual case takes no lock
            return
        with self._lock:
            if self._away_since is None:
                return
            seconds, self._away_since = self._clock() - self._away_since, None
        log.info(self._back_event, after_seconds=round(seconds, 1), **facts)
