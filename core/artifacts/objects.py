"""What both stores share: the receipt of a stored object, the rules for keys, and hashing while streaming."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import FileTooLargeError, InvalidRequestError

__all__ = ["CHUNK_BYTES", "Meter", "StoredObject", "check_key", "file_chunks"]

CHUNK_BYTES = 1024**2
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:+=@-]{0,199}")
_LONGEST_KEY = 900  # S3 allows 1,024 bytes, prefix included


@dataclass(frozen=True)
class StoredObject:
    """An object that is complete in the store. `sha256` is hexadecimal."""

    key: str
    size_bytes: int
    sha256: str


def check_key(key: str) -> str:
    """The key, where it is one or more plain names with slashes between them. Raises InvalidRequestError."""
    if len(key) > _LONGEST_KEY or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidRequestError(f"{key[:80]!r} is not a storage key.", code="invalid_storage_key")
    return key


class Meter:
    """Counts and hashes what passes through; stops at the first byte above `max_bytes`."""

    def __init__(self, key: str, max_bytes: int | None) -> None:
        self._key, self._max_bytes = key, max_bytes
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def measure(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks, unchanged. Raises FileTooLargeError."""
        for chunk in chunks:
            self._size_bytes += len(chunk)
            if self._max_bytes is not None and self._size_bytes > self._max_bytes:
                raise FileTooLargeError(
                    f"The file is larger than the limit upload_bytes, {self._max_bytes:,}. "
                    "Split it, compress it with gzip, or have the limit raised.",
                    param="file",
                )
            self._hash.update(chunk)
            yield chunk

    def receipt(self) -> StoredObject:
        """What passed through."""
        return StoredObject(self._key, self._size_bytes, self._hash.hexdigest())


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a chunk at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
