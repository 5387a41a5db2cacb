"""Whose turn it is, where there are fewer places than callers."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from core.errors import RateLimitError

__all__ = ["Turns"]

RETRY_AFTER_SECONDS = 2


class Turns:
    """A few places, shared among owners so that none of them can keep another waiting for long.

    A free place goes to the waiting owner who holds the fewest, then to whoever came first. Where there are several
    places, no owner gets the last one. Who would be one too many to wait is refused at once: waiting costs a thread.
    """

    def __init__(self, places: int, *, waiting_each: int, waiting: int, patience_seconds: float) -> None:
        self._places = places
        self._places_each = max(1, places - 1)
        self._waiting_each, self._most_waiting = waiting_each, waiting
        self._patience_seconds = patience_seconds
        self._changed = Condition()
        self._held: Counter[str] = Counter()
        self._waiting: list[tuple[str, object]] = []

    @contextmanager
    def turn(self, owner: str) -> Iterator[None]:
        """Hold a place while the block runs. Raises RateLimitError (`too_many_at_once`) where none comes free."""
        self._wait(owner)
        try:
            yield
        finally:
            with self._changed:
                self._held[owner] -= 1
                if not self._held[owner]:
                    del self._held[owner]
                self._changed.notify_all()

    def _wait(self, owner: str) -> None:
        ticket = (owner, object())
        with self._changed:
            others = sum(waiting == owner for waiting, _ in self._waiting)
            if others >= self._waiting_each or len(self._waiting) >= self._most_waiting:
                raise _too_many(f"{others:,} of this organization's and {len(self._waiting) - others:,} others wait")
            self._waiting.append(ticket)
            started = time.monotonic()
            try:
                if not self._changed.wait_for(lambda: self._next() is ticket, self._patience_seconds):
                    raise _too_many(f"this one waited {time.monotonic() - started:,.0f} seconds")
                self._held[owner] += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _next(self) -> tuple[str, object] | None:
        if self._held.total() >= self._places:
            return None
        able = [ticket for ticket in self._waiting if self._held[ticket[0]] < self._places_each]
        return min(able, key=lambda ticket: self._held[ticket[0]], default=None)


def _too_many(what: str) -> RateLimitError:
    return RateLimitError(
        f"Too many files are being read at once: {what}. Try again in {RETRY_AFTER_SECONDS} seconds.",
        code="too_many_at_once",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
