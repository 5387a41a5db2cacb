"""Waiting for what other processes do, with a deadline and the reason on failure."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

POLL_SECONDS = 0.05


def wait_for(
    look: Callable[[], Value | None], *, seconds: float, what: str, context: Callable[[], str] = lambda: ""
) -> Value:
    """The first true value of `look`; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {seconds:.0f} s for {what}\n{context()}")
