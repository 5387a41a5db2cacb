"""SIGTERM, obeyed soon and at a point where nothing is half done."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequested(BaseException):  # like KeyboardInterrupt: a request, not an error
    """Raised where a run stops because it was asked to. Not an Exception, so that no library swallows it."""


class StopSignal:
    """Whether the run was asked to stop, and whether the code now running may be interrupted anywhere."""

    def __init__(self) -> None:
        self.requested = False
        self._interruptible = 0

    def install(self) -> None:
        """Take over SIGTERM. SIGINT is left to the supervisor: a terminal sends Ctrl-C to the whole group."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def request(self) -> None:
        """Ask for a stop at the next check."""
        self.requested = True

    def check(self) -> None:
        """Raises StopRequested once a stop was asked for."""
        if self.requested:
            raise StopRequested

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, SIGTERM raises StopRequested at once: for work that leaves nothing half done, such as loading."""
        self.check()
        self._interruptible += 1
        try:
            yield
        finally:
            self._interruptible -= 1

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if self._interruptible:
            raise StopRequested
