"""What an embedded service leaves in its directory while it runs: a lock, and where it can be reached."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil

from core.errors import ConflictError


@dataclass(frozen=True)
class RunningService:
    """Where a service can be reached, and the process that supervises it."""

    url: str
    process_id: int


@contextmanager
def lock_directory(data_dir: Path) -> Iterator[None]:
    """Hold the directory: one service, one directory. Raises ConflictError where another holds it.

    The kernel drops the lock with the process, however it ends.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            service = _read(data_dir)
            where = f" at {service.url} (process {service.process_id})" if service else ""
            raise ConflictError(
                f"A service runs on {data_dir} already{where}. Stop it, or use another directory with --data DIR.",
                code="already_running",
            ) from None
        _path(data_dir).unlink(missing_ok=True)  # of one that was killed
        try:
            yield
        finally:
            _path(data_dir).unlink(missing_ok=True)


def announce(data_dir: Path, service: RunningService) -> None:
    """Leave word of where the service is."""
    temporary = _path(data_dir).with_suffix(".tmp")
    temporary.write_bytes(orjson.dumps(asdict(service)))
    temporary.replace(_path(data_dir))


def running_service(data_dir: Path) -> RunningService | None:
    """The service that runs on the directory now; None where there is none."""
    try:
        with (data_dir / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _read(data_dir)
    return None


def _read(data_dir: Path) -> RunningService | None:
    try:
        service = RunningService(**orjson.loads(_path(data_dir).read_bytes()))
    except FileNotFoundError:
        return None
    return service if psutil.pid_exists(service.process_id) else None


def _path(data_dir: Path) -> Path:
    return data_dir / "service.json"
