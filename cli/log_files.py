"""The log files of a service's processes, kept from growing for ever, and their warnings on the terminal."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import orjson

LARGEST_LOG_BYTES = 20 * 1024**2
READ_EVERY_SECONDS = 0.5
SHOWN_LINES = 15
REPEATED_LEVELS = {"warning", "error", "critical"}
OWN_FIELDS = {"event", "level", "logger", "timestamp", "exception"}


def open_log(path: Path) -> BinaryIO:
    """The log, to append to. One that has grown large is moved aside first, over the one before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LARGEST_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def read_tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-SHOWN_LINES:])


async def repeat_warnings(path: Path, position: int, show: Callable[[str], None]) -> None:
    """Show every warning or error that is appended behind `position`, until cancelled.

    A file, unlike a pipe, keeps the last words of a process that outlives its reader, and never blocks it.
    """
    with path.open("rb") as log:
        log.seek(position)
        unfinished = b""
        while True:
            *lines, unfinished = (unfinished + log.read()).split(b"\n")
            for line in lines:
                if (text := warning_in(line)) is not None:
                    show(text)
            if log.tell() > LARGEST_LOG_BYTES:
                _rotate(path)
                log.seek(0)
            await asyncio.sleep(READ_EVERY_SECONDS)


def _rotate(path: Path) -> None:
    """Copy a log aside and empty it. Its writer appends, and so goes on at the new end without knowing."""
    shutil.copyfile(path, path.with_suffix(".log.1"))
    os.truncate(path, 0)


def warning_in(line: bytes) -> str | None:
    """A structured log line as a sentence, if it warns."""
    if not line.startswith(b"{"):
        return None
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if event.get("level") not in REPEATED_LEVELS:
        return None
    details = " ".join(f"{name}={value}" for name, value in event.items() if name not in OWN_FIELDS)
    return f"{event.get('event')} {details}".strip()
