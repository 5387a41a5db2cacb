"""Where a backup lies: a folder, which the next one brings up to date, or one tar file."""

import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from core.artifacts.local import LocalStore
from core.artifacts.objects import CHUNK_BYTES, StoredObject
from core.errors import ConflictError, InvalidRequestError, NotFoundError, StoreError

__all__ = ["MANIFEST", "Reader", "Writer", "is_tar", "open_reader", "open_writer", "stream"]

MANIFEST = "manifest.json"


class Writer(Protocol):
    """A backup that is being made; it stands once its manifest is written."""

    def add(self, name: str, chunks: Iterable[bytes]) -> StoredObject:
        """Store a file of the backup. Raises StoreError where the disk is full."""

    def has(self, name: str, size_bytes: int) -> bool:
        """Whether an earlier backup in the same place has this file already."""

    def finish(self, manifest: bytes, names: Iterable[str]) -> None:
        """Make this the backup: of these files, with this manifest."""


class Reader(Protocol):
    """A finished backup."""

    def open(self, name: str) -> BinaryIO:
        """A file of the backup. Raises NotFoundError."""


def is_tar(path: Path) -> bool:
    """Whether the path names a tar file rather than a folder."""
    return path.suffix == ".tar"


def open_writer(path: Path) -> AbstractContextManager[Writer]:
    """A backup at the path. Raises ConflictError for a folder of other things, and StoreError."""
    return _tar_writer(path) if is_tar(path) else _folder_writer(path)


@contextmanager
def open_reader(path: Path) -> Iterator[Reader]:
    """The backup at the path. Raises NotFoundError and InvalidRequestError."""
    if not is_tar(path):
        yield LocalStore(path)
        return
    try:
        with tarfile.open(path, "r:") as archive:
            yield _TarReader(archive)
    except FileNotFoundError:
        raise NotFoundError(f"There is no backup at {path}.", code="backup_not_found") from None
    except tarfile.TarError as error:
        raise InvalidRequestError(f"{path} is no tar file that can be read: {error}.", code="invalid_backup") from None


def stream(opening: Callable[[], BinaryIO]) -> Iterator[bytes]:
    """The bytes behind `opening`, a chunk at a time."""
    with opening() as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class _FolderWriter:
    def __init__(self, root: Path) -> None:
        self._root, self._store = root, LocalStore(root)

    def add(self, name: str, chunks: Iterable[bytes]) -> StoredObject:
        return self._store.put(name, chunks)

    def has(self, name: str, size_bytes: int) -> bool:
        path = self._root / name
        return path.is_file() and path.stat().st_size == size_bytes

    def finish(self, manifest: bytes, names: Iterable[str]) -> None:
        """What only an earlier backup had goes when this one is complete."""
        self._store.put(MANIFEST, [manifest])
        kept = {MANIFEST, *names}
        for path in sorted(self._root.rglob("*"), reverse=True):  # what is inside a folder comes before it
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self._root).as_posix() not in kept:
                path.unlink()


@contextmanager
def _folder_writer(path: Path) -> Iterator[Writer]:
    if path.exists() and not path.is_dir():
        raise ConflictError(f"{path} is a file. Name a folder, or a file that ends in .tar.", code="not_a_backup")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ConflictError(
            f"{path} holds other things than a backup. Name a new or empty folder, or that of an earlier backup.",
            code="not_a_backup",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {path} cannot be made: {error.strerror}.") from error
    yield _FolderWriter(path)


class _TarWriter:
    def __init__(self, archive: tarfile.TarFile, spool: Path) -> None:
        self._archive, self._spool = archive, LocalStore(spool)

    def add(self, name: str, chunks: Iterable[bytes]) -> StoredObject:
        """By way of a file: its header, which comes first, says how long it is."""
        stored = self._spool.put(name, chunks)
        path = self._spool.root / name
        self._archive.add(path, arcname=name)
        path.unlink()
        return stored

    def has(self, name: str, size_bytes: int) -> bool:  # noqa: ARG002 - the Protocol's
        return False

    def finish(self, manifest: bytes, names: Iterable[str]) -> None:  # noqa: ARG002 - the Protocol's
        self.add(MANIFEST, [manifest])


@contextmanager
def _tar_writer(path: Path) -> Iterator[Writer]:
    """An earlier file of this name is replaced when the new one is complete."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tunewright-") as spool:
            with tarfile.open(partial, "w") as archive:
                yield _TarWriter(archive, Path(spool))
            partial.replace(path)
    except OSError as error:
        raise StoreError(f"The backup {path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


class _TarReader:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def open(self, name: str) -> BinaryIO:
        try:
            file = self._archive.extractfile(name)
        except KeyError:
            file = None
        if file is None:
            raise NotFoundError(f"The backup has no {name}.", code="object_not_found")
        return cast(BinaryIO, file)
