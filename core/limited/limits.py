"""What a limited child may use, and how its end is told."""

import signal
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ChildDiedError", "Limit", "LimitExceededError", "Limits"]


class Limit(StrEnum):
    """What there is a limit on."""

    CPU_SECONDS = "cpu_seconds"
    WALL_SECONDS = "wall_seconds"
    MEMORY_BYTES = "memory_bytes"
    REPLY_BYTES = "reply_bytes"


@dataclass(frozen=True)
class Limits:
    """What a child may use. Times are for each value that it gives back.

    CPU time is what a busy input costs on any machine, so it is the limit to tune; wall-clock time only has to end a
    child that waits, and is wide because the machine may be loaded. Memory is what is allocated on top of what the
    interpreter and its imports hold.
    """

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    reply_bytes: int = 64 * 1024**2


class LimitExceededError(Exception):
    """Raised when a child needed more than it may use; `allowed` is in the unit that `limit` names."""

    def __init__(self, limit: Limit, allowed: float) -> None:
        super().__init__(limit, allowed)
        self.limit, self.allowed = limit, allowed

    def __str__(self) -> str:
        if self.limit is Limit.CPU_SECONDS:
            return f"it needed more than {self.allowed:g} s of CPU time"
        if self.limit is Limit.WALL_SECONDS:
            return f"it took longer than {self.allowed:g} s"
        what = "memory" if self.limit is Limit.MEMORY_BYTES else "room for its result"
        return f"it needed more than {self.allowed / 1024**2:,.0f} MiB of {what}"


class ChildDiedError(Exception):
    """Raised when a child ended without an answer: minus the signal's number in `exit_code`, or its own exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        how = signal.Signals(-self.exit_code).name if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"the process that read it ended with {how}, as it does where its memory runs out inside a library"
