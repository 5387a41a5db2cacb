"""Room on the disks that the service writes to."""

import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DiskSpace", "disk_space"]


@dataclass(frozen=True)
class DiskSpace:
    """Of the file system that a directory is on."""

    free_bytes: int
    total_bytes: int


def disk_space(directory: Path) -> DiskSpace:
    """Where `directory` is, or will be. Raises OSError where its file system does not answer."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    usage = shutil.disk_usage(existing)
    return DiskSpace(usage.free, usage.total)
