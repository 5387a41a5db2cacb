"""Waiting until something that is away comes back: with growing, jittered delays, and not for ever."""

import time
from collections.abc import Callable, Iterator
from random import uniform
from typing import TypeVar

from core.errors import ServiceUnavailableError
from core.outage_log import OutageLog

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 5.0

Result = TypeVar("Result")


def delays(
    first_seconds: float = FIRST_DELAY_SECONDS, longest_seconds: float = LONGEST_DELAY_SECONDS
) -> Iterator[float]:
    """Seconds to wait before the next try and the next: doubled each time, within 50%, so that workers spread out."""
    seconds = first_seconds
    while True:
        yield seconds * uniform(0.5, 1.5)
        seconds = min(seconds * 2, longest_seconds)


def retry_while_away(work: Callable[[], Result], seconds: float, wait: Callable[[float], bool]) -> Result:
    """`work`, tried again for up to `seconds` while what it needs is away.

    `wait` sleeps for the seconds it is given and returns whether to give up. Raises the last ServiceUnavailableError,
    and at once whatever else `work` raises.
    """
    deadline = time.monotonic() + seconds
    outage = OutageLog("waiting_for_service", "service_is_back")
    for delay in delays():
        try:
            result = work()
        except ServiceUnavailableError as error:
            outage.away(error.message)
            if time.monotonic() + delay > deadline or wait(delay):
                raise
        else:
            outage.back()
            return result
    raise AssertionError("delays never end")
