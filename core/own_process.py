"""What every process of the service does first for itself: its files are nobody else's, and it may open many."""

import os
import resource
from pathlib import Path

import structlog

__all__ = ["allow_many_files", "keep_private"]

PRIVATE_UMASK = 0o077
OPEN_FILES = 65_536

log = structlog.get_logger()


def keep_private(data_dir: Path) -> None:
    """Let nobody else on this machine read what this process writes, nor what is in its directory already."""
    os.umask(PRIVATE_UMASK)
    if data_dir.is_dir() and data_dir.stat().st_mode & PRIVATE_UMASK:
        try:
            data_dir.chmod(0o700)
        except PermissionError as error:  # a volume that belongs to another
            log.warning("data_directory_is_open_to_others", directory=str(data_dir), error=str(error))


def allow_many_files() -> int:
    """Raise the limit on open files as far as the system lets; returns it. Each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
