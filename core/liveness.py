"""Signs of life: a process touches a file every second, and whoever keeps it running looks at the file's time.

A process that holds the interpreter's lock for good, is stopped, or has an event loop that never turns touches nothing,
though it still exists: only this tells it from one at work.
"""

import asyncio
import threading
from pathlib import Path

from core.hang_guard import Pulse

BEAT_SECONDS = 1.0


def beat_in_thread(path: Path | None) -> None:
    """Touch `path` every second from a thread of this process, as long as it lives; nothing where there is no path."""
    if path is not None:
        threading.Thread(target=_beat_for_good, args=(path,), name="liveness", daemon=True).start()


async def beat_in_loop(path: Path | None, pulse: Pulse) -> None:
    """Touch `path`, where there is one, and beat every second as long as this event loop turns."""
    while True:
        if path is not None:
            path.touch()
        pulse.beat()
        await asyncio.sleep(BEAT_SECONDS)


def _beat_for_good(path: Path) -> None:
    pause = threading.Event()
    while True:
        path.touch()
        pause.wait(BEAT_SECONDS)
