"""Temporary copies of what lies in the store or the hub, and the removal of those that killed processes left behind."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PREFIX", "remove_leftovers", "scratch_directory"]

PREFIX = "tunewright-scratch-"
LEFT_AFTER_SECONDS = 86_400.0  # nothing works on one copy for so long


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """An empty directory that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        yield Path(directory)


def remove_leftovers() -> int:
    """Remove what is a day old of this user's; returns how many there were."""
    removed = 0
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError):  # its owner was quicker
            found = path.lstat()
            if found.st_uid == os.getuid() and found.st_mtime < time.time() - LEFT_AFTER_SECONDS:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                removed += 1
    return removed
