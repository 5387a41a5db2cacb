"""A process touches its file as long as it lives, an event loop as long as it turns."""

import asyncio
from pathlib import Path

from core.hang_guard import Pulse
from core.liveness import beat_in_loop, beat_in_thread
from tests.waiting import wait_for


def test_a_thread_touches_the_file_again_and_again(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    beat_in_thread(alive)
    wait_for(alive.exists, what="the first sign of life")
    first = alive.stat().st_mtime_ns
    wait_for(lambda: alive.stat().st_mtime_ns > first, what="the second")
    assert alive.stat().st_mtime_ns > first


def test_a_loop_that_turns_touches_the_file(tmp_path: Path) -> None:
    alive = tmp_path / "alive"

    async def turn() -> None:
        beating = asyncio.create_task(beat_in_loop(alive, pulse))
        while not alive.exists():
            await asyncio.sleep(0.01)
        beating.cancel()

    pulse = Pulse()
    asyncio.run(turn())
    assert alive.exists()
    assert pulse.beats > 0
