"""A log is moved aside while its program goes on writing to it."""

import asyncio
from pathlib import Path

import pytest

from cli import log_files
from tests.waiting import PATIENCE_SECONDS


def test_a_log_is_rotated_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "LARGEST_LOG_BYTES", 1000)
    monkeypatch.setattr(log_files, "READ_EVERY_SECONDS", 0.01)
    path, shown = tmp_path / "api.log", asyncio.Queue[str]()

    async def run() -> tuple[str, str]:
        with log_files.open_log(path) as log:  # as the program holds it
            reading = asyncio.create_task(log_files.repeat_warnings(path, 0, shown.put_nowait))
            log.write(b"x" * 1500 + b"\n")
            log.write(b'{"level": "warning", "event": "first"}\n')
            log.flush()
            first = await asyncio.wait_for(shown.get(), PATIENCE_SECONDS)
            while path.stat().st_size:
                await asyncio.sleep(0.01)
            log.write(b'{"level": "warning", "event": "second"}\n')
            log.flush()
            second = await asyncio.wait_for(shown.get(), PATIENCE_SECONDS)
            reading.cancel()
            return first, second

    assert asyncio.run(run()) == ("first", "second")
    assert b"first" in path.with_suffix(".log.1").read_bytes()
    assert path.read_bytes() == b'{"level": "warning", "event": "second"}\n'
