"""Objects as files under one directory."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from core.artifacts.objects import Meter, StoredObject, check_key, file_chunks
from core.errors import NotFoundError, StoreError, StoreFullError

__all__ = ["LocalStore"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a quota on it, a limit of this process
_INCOMING = ".incoming"  # no key begins with a dot


@dataclass(frozen=True)
class LocalStore:
    """Files under `root`. An object is written beside them, synced to disk and then renamed into place."""

    root: Path

    def put(self, key: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> StoredObject:
        """Store a stream. Raises FileTooLargeError and StoreError, and leaves nothing behind then."""
        target = self._path(key)
        meter = Meter(key, max_bytes)
        incoming = self.root / _INCOMING
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=incoming)
        except OSError as error:
            raise self._failed("written", error) from error
        temporary = Path(name)
        stream = meter.measure(chunks)
        try:
            with os.fdopen(handle, "wb") as file:
                while (chunk := next(stream, None)) is not None:
                    self._write(file, chunk)
                self._publish(file, temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return meter.receipt()

    def _write(self, file: BinaryIO, chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise self._failed("written", error) from error

    def _publish(self, file: BinaryIO, temporary: Path, target: Path) -> None:
        """Make the object durable, then visible; a crash between leaves only the temporary file."""
        try:
            file.flush()
            os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            directory = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._failed("written", error) from error

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a local file. Raises StoreError."""
        return self.put(key, file_chunks(path))

    def open(self, key: str) -> BinaryIO:
        """The object as a stream. Raises NotFoundError and StoreError."""
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(key) from None
        except OSError as error:
            raise self._failed("read", error) from error

    def materialize(self, key: str, directory: Path) -> Path:
        """The object linked into `directory`, or copied where that is on another disk."""
        source = self._path(key)
        if not source.is_file():
            raise _missing(key)
        target = directory / source.name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(source)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source, target)
        except FileNotFoundError:
            raise _missing(key) from None
        except OSError as error:
            raise self._failed("read", error) from error
        return target

    def delete(self, key: str) -> None:
        """Remove the object if it exists. Raises StoreError."""
        try:
            self._path(key).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise self._failed("changed", error) from error

    def exists(self, key: str) -> bool:
        """Whether the object is in the store."""
        return self._path(key).is_file()

    def download_url(self, key: str, filename: str, expires_seconds: int) -> str | None:  # noqa: ARG002 (the Protocol's)
        """None: the API serves the bytes."""
        check_key(key)
        return None

    def keys_before(self, moment: datetime) -> Iterator[str]:
        """The keys of all objects stored before then. Raises StoreError."""
        for path in self._files_before(self.root, moment):
            key = path.relative_to(self.root).as_posix()
            if not key.startswith(_INCOMING):
                yield key

    def discard_incomplete(self, moment: datetime) -> int:
        """Remove streams to which nothing was written since then. Raises StoreError."""
        stale = list(self._files_before(self.root / _INCOMING, moment))
        try:
            for path in stale:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("changed", error) from error
        return len(stale)

    def _files_before(self, directory: Path, moment: datetime) -> Iterator[Path]:
        for path in directory.rglob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                raise self._failed("read", error) from error
            if S_ISREG(stat.st_mode) and stat.st_mtime < moment.timestamp():
                yield path

    def check(self) -> None:
        """Raises StoreError unless a file can be written."""
        try:
            incoming = self.root / _INCOMING
            incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=incoming) as probe:
                probe.write(b"1")
        except OSError as error:
            raise self._failed("written", error) from error

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _failed(self, verb: str, error: OSError) -> StoreError:
        if error.errno in _FULL:
            return StoreFullError(
                f"The artifact directory has no room: {error.strerror}. Nothing was kept. Delete files and jobs that "
                "are no longer needed, or have its disk enlarged."
            )
        return StoreError(f"The artifact directory cannot be {verb}: {error.strerror or error}.")


def _missing(key: str) -> NotFoundError:
    return NotFoundError(f"There is no stored object {key!r}.", code="object_not_found")
