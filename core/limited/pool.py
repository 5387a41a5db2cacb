"""Limited children that are kept from one call to the next, since starting one costs more than most calls."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from core.errors import ServiceUnavailableError
from core.limited.limits import ChildDiedError, Limits
from core.limited.process import LimitedChild
from core.limited.turns import Turns

__all__ = ["ChildPool"]

CALLS_OF_A_CHILD = 100  # what its libraries keep from call to call counts as its memory
MIB = 1024**2


class ChildPool:
    """Children that take calls in turns. Safe to use from many threads."""

    def __init__(self, at_once: int = 3, memory_bytes: int = 2048 * MIB) -> None:
        self.limits = Limits(cpu_seconds=120, wall_seconds=600, memory_bytes=memory_bytes)
        self.turns = Turns(at_once, waiting_each=4, waiting=16, patience_seconds=30)
        self._lock = Lock()
        self._idle: list[tuple[LimitedChild, int]] = []
        self._busy: set[LimitedChild] = set()
        self._is_closed = False

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """As `run_limited`, in a child of the pool; take a turn first.

        Raises what `run_limited` raises, and ServiceUnavailableError where the pool is closed meanwhile.
        """
        child, calls = self._take()
        try:
            [value] = child.values(function, *arguments)
        except ChildDiedError:
            if self._is_closed:
                raise _closed() from None
            raise
        finally:
            self._give_back(child, calls + 1)
        return value

    def close(self) -> None:
        """End all children; whoever waits for one gets ServiceUnavailableError."""
        with self._lock:
            self._is_closed = True
            for child in self._busy:
                child.kill()
            idle, self._idle = self._idle, []
        for child, _ in idle:
            child.close()

    def _take(self) -> tuple[LimitedChild, int]:
        with self._lock:
            if self._is_closed:
                raise _closed()
            while self._idle:
                child, calls = self._idle.pop()
                if child.is_usable:
                    self._busy.add(child)
                    return child, calls
                child.close()
        child = LimitedChild(self.limits)
        with self._lock:
            self._busy.add(child)
            if self._is_closed:  # while it was started
                child.kill()
        return child, 0

    def _give_back(self, child: LimitedChild, calls: int) -> None:
        with self._lock:
            self._busy.discard(child)
            if child.is_usable and calls < CALLS_OF_A_CHILD and not self._is_closed:
                self._idle.append((child, calls))
                return
        child.close()


def _closed() -> ServiceUnavailableError:
    return ServiceUnavailableError("This process is shutting down. Try again in a moment.")
