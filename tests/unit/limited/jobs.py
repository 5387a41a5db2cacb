"""What the tests have limited children do."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from core.datasets.row_errors import RowError
from core.limited import LimitedChild, Limits

LIMITS = Limits(cpu_seconds=1, wall_seconds=60, memory_bytes=64 * 1024**2, reply_bytes=1024**2)


def double(number: int) -> int:
    print("a library says something")  # noqa: T201
    return 2 * number


def squares(count: int) -> Iterator[int]:
    for number in range(count):
        yield number**2


def busy(*_: object) -> int:
    """One call into C that runs for hours and lets no other thread run."""
    return len(str(3 ** (2**30)))


def bomb() -> int:
    return len("a" * 2_000_000_000)


def sleep() -> None:
    time.sleep(600)


def big_reply() -> str:
    return "a" * 2 * 1024**2


def variables() -> list[str]:
    return sorted(os.environ)


def broken_row() -> None:
    raise RowError(7, "it is empty.", "messages", "Fill it.", code="empty_row")


def bug() -> None:
    raise KeyError("no such thing")


def leave_busy(report: str) -> None:
    """A parent whose child is busy; writes the child's process id to `report`."""
    child = LimitedChild(Limits(cpu_seconds=600, wall_seconds=600, memory_bytes=64 * 1024**2))
    assert list(child.values(double, 2)) == [4]
    path = Path(report)
    path.with_suffix(".new").write_text(str(child.process_id))
    path.with_suffix(".new").rename(path)
    list(child.values(busy))
