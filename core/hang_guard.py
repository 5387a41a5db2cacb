"""A process whose own loop hangs ends itself, so that whoever keeps it running starts it again.

It exists though it does nothing: neither a container's restart policy nor a service manager would notice.
"""

import faulthandler
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

__all__ = ["HUNG_EXIT_CODE", "Pulse", "end_when_silent"]

HUNG_EXIT_CODE = 70  # sysexits.h: EX_SOFTWARE
CHECK_SECONDS = 1.0
STANDARD_ERROR = 2  # sys.stderr may be Celery's, which is no file

log = structlog.get_logger()


class Pulse:
    """The signs of life of one loop. It is missed from its first beat on, except while it rests."""

    def __init__(self) -> None:
        self.beats = 0
        self.rests = False

    def beat(self) -> None:
        """The loop has come round."""
        self.beats += 1

    def retire(self) -> None:
        """The loop has come to its end, and is missed no more."""
        self.beats = 0

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The loop waits on purpose while the block runs."""
        self.rests = True
        try:
            yield
        finally:
            self.beats += 1
            self.rests = False


def end_when_silent(name: str, pulse: Pulse, seconds: float) -> None:
    """End this process once `pulse` has not beaten for so long, in a thread that lives as long as the process does.

    Where each thread is goes to standard error first. Checks are counted, not time, which also passes while the
    process is stopped.
    """
    guard = threading.Thread(target=_guard, args=(name, pulse, seconds), name=f"guard-{name}", daemon=True)
    guard.start()


def _guard(name: str, pulse: Pulse, seconds: float) -> None:
    pause = threading.Event()
    last, silent_seconds = 0, 0.0
    while silent_seconds < seconds:
        pause.wait(CHECK_SECONDS)
        is_silent = pulse.beats == last and pulse.beats > 0 and not pulse.rests
        last, silent_seconds = pulse.beats, silent_seconds + CHECK_SECONDS if is_silent else 0.0
    try:
        log.critical("hangs", loop=name, seconds=seconds, exit_code=HUNG_EXIT_CODE)
        logging.shutdown()
        faulthandler.dump_traceback(STANDARD_ERROR, all_threads=True)
    finally:
        os._exit(HUNG_EXIT_CODE)
