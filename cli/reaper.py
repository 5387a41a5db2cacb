"""Ends what a supervisor leaves when it is killed outright, however busy that is.

The supervisor starts this as a small process of its own and tells it, a line each, which programs it has started and
which have ended. When the pipe closes, the supervisor is gone: every program still there is asked to end, and killed
with all that it started when its grace is over. Run as a file it needs nothing but the standard library.
"""

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Self

POLL_SECONDS = 0.1  # another's children cannot be waited for


class Reaper:
    """The supervisor's side: what it has running, told as it changes. One that was itself killed is done without."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        self._process = process
        self._pipe = process.stdin

    @classmethod
    async def start(cls) -> Self:
        """Start the process."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, __file__, stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
        )

    def started(self, process_id: int, grace_seconds: float) -> None:
        """A program runs, which leads its process group."""
        self._say(f"+ {process_id} {grace_seconds}")

    def ended(self, process_id: int) -> None:
        """A program has ended, and what it started was ended too."""
        self._say(f"- {process_id}")

    async def close(self) -> None:
        """Everything has ended in good order."""
        self._pipe.close()
        await self._process.wait()

    def _say(self, line: str) -> None:
        if not self._pipe.is_closing():
            self._pipe.write(f"{line}\n".encode())


def main() -> None:
    """Listen until the supervisor is gone, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    left: dict[int, float] = {}
    for line in sys.stdin:
        sign, process_id, *grace = line.split()
        if sign == "+":
            left[int(process_id)] = float(grace[0])
        else:
            left.pop(int(process_id), None)
    closed_at = time.monotonic()
    for process_id in left:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGTERM)
    while left:
        late = [one for one, grace in left.items() if time.monotonic() - closed_at > grace]
        for process_id in {*late, *(one for one in left if not _exists(one))}:
            del left[process_id]
            with suppress(ProcessLookupError):
                os.killpg(process_id, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
