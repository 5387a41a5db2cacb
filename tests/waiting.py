"""Waiting for what other processes do, and the reason where it never comes.

How long that takes is for the benches to say: a test only tells what happens from what does not, on a busy machine too.
"""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 240


def wait_for(look: Callable[[], Value | None], *, what: str, context: Callable[[], str] = lambda: "") -> Value:
    """The first true value of `look`; fails the test where patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = look()
        if value:
            return value
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s for {what}\n{context()}")
