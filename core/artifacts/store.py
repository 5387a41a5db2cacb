"""Where bytes live: uploads, checkpoints and results. A directory on one machine, or a bucket for many."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from core.artifacts.local import LocalStore
from core.artifacts.objects import StoredObject
from core.errors import InvalidRequestError

__all__ = ["ArtifactStore", "StoredObject", "open_store"]


class ArtifactStore(Protocol):
    """Immutable objects under keys like `org-1/files/file-2`.

    Every method raises InvalidRequestError (`invalid_storage_key`) for a key that could leave the store and StoreError
    where the store cannot be reached; reading raises NotFoundError where there is no such object.
    """

    def put(self, key: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> StoredObject:
        """Store a stream, hashed on the way, never whole in memory. The object appears complete or not at all.

        Raises FileTooLargeError at the first byte above `max_bytes`, and whatever `chunks` raises; both leave nothing.
        """

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a local file."""

    def open(self, key: str) -> BinaryIO:
        """The object as a readable stream; close it."""

    def materialize(self, key: str, directory: Path) -> Path:
        """The object as a file in `directory`, which is made when missing. Read it, never write it; the caller
        deletes the directory."""

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens when it does not exist."""

    def exists(self, key: str) -> bool:
        """Whether the object is complete in the store."""

    def download_url(self, key: str, filename: str, expires_seconds: int) -> str | None:
        """A link that lets its holder download the object as `filename` for a while; None where the API has to serve
        the bytes itself."""

    def keys_before(self, moment: datetime) -> Iterator[str]:
        """The keys of all objects that were stored before then."""

    def discard_incomplete(self, moment: datetime) -> int:
        """Remove what was begun before then and never became an object, since its writer died; says how many."""

    def check(self) -> None:
        """Raises StoreError unless the store can be written now."""


def open_store(url: str, *, endpoint_url: str | None = None, public_endpoint_url: str | None = None) -> ArtifactStore:
    """The store at `file:///directory` or `s3://bucket/prefix`. `endpoint_url` points to an S3-compatible service, and
    `public_endpoint_url` to the same one as browsers reach it.

    Opens no connection: credentials come from the environment, as with every AWS client. Raises InvalidRequestError.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path not in ("", "/"):
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from core.artifacts.s3 import S3Store  # noqa: PLC0415 - boto3 takes 0.2 s of every command's start

        return S3Store(
            parts.netloc,
            prefix=parts.path.strip("/"),
            endpoint_url=endpoint_url,
            public_endpoint_url=public_endpoint_url,
        )
    raise InvalidRequestError(
        f"The store URL {url!r} is neither file:///directory nor s3://bucket/prefix.", code="invalid_store_url"
    )
