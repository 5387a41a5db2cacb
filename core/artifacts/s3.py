"""Objects in a bucket of S3 or any service that speaks its protocol."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from core.artifacts.objects import Meter, StoredObject, check_key, file_chunks
from core.errors import NotFoundError, StoreError

__all__ = ["S3Store"]

PART_BYTES = 16 * 1024**2  # S3 allows 10,000 parts of at least 5 MiB: objects up to 156 GiB
_IN_PARTS = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, use_threads=False)
_MISSING = frozenset({"404", "NoSuchKey", "NoSuchUpload", "NotFound"})


class S3Store:
    """A bucket, or the part of it under `prefix`. Credentials and region come from the environment.

    Amazon's own endpoint is reached from everywhere. Another `endpoint_url` may be private or speak no TLS, so links
    are made for `public_endpoint_url` alone, and none without it.
    """

    def __init__(
        self, bucket: str, *, prefix: str = "", endpoint_url: str | None = None, public_endpoint_url: str | None = None
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        config = Config(
            signature_version="s3v4",
            retries={"mode": "standard", "max_attempts": 4},
            connect_timeout=5,
            read_timeout=60,
            # Own endpoints rarely have a DNS name per bucket, nor the checksums that AWS added in 2025.
            s3={"addressing_style": "path" if endpoint_url or public_endpoint_url else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client: Any = boto3.client("s3", endpoint_url=endpoint_url, config=config)
        self._link_client: Any = None
        if public_endpoint_url or not endpoint_url:
            self._link_client = boto3.client("s3", endpoint_url=public_endpoint_url, config=config)

    def put(self, key: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> StoredObject:
        """Store a stream; above one part as a multipart upload, which boto3 aborts when anything fails.

        Raises FileTooLargeError and StoreError.
        """
        meter = Meter(key, max_bytes)
        stream = _Stream(meter.measure(chunks))
        try:
            with self._errors(key):
                self._client.upload_fileobj(stream, self._bucket, self._name(key), Config=_IN_PARTS)
        except StoreError:
            if stream.failure is not None:  # not the bucket's
                raise stream.failure from None
            raise
        return meter.receipt()

    def put_file(self, key: str, path: Path) -> StoredObject:
        """Store a local file. Raises StoreError."""
        return self.put(key, file_chunks(path))

    def open(self, key: str) -> BinaryIO:
        """The object as a stream. Raises NotFoundError and StoreError."""
        with self._errors(key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._name(key))["Body"]
        return cast(BinaryIO, io.BufferedReader(body, PART_BYTES // 16))

    def materialize(self, key: str, directory: Path) -> Path:
        """The object downloaded into `directory`. Raises NotFoundError and StoreError."""
        target = directory / key.rsplit("/", 1)[-1]
        with self._errors(key):
            name = self._name(key)
            directory.mkdir(parents=True, exist_ok=True)
            self._client.download_file(self._bucket, name, str(target))
        return target

    def delete(self, key: str) -> None:
        """Remove the object if it exists. Raises StoreError."""
        with self._errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    def exists(self, key: str) -> bool:
        """Whether the object is in the store. Raises StoreError."""
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self._bucket, Key=self._name(key))
        except NotFoundError:
            return False
        return True

    def download_url(self, key: str, filename: str, expires_seconds: int) -> str | None:
        """A presigned link, or None where browsers may not reach the store. Raises StoreError without credentials."""
        name = self._name(key)
        if self._link_client is None:
            return None
        plain = re.sub(r'[^ -~]|["\\]', "_", filename)
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
        parameters = {"Bucket": self._bucket, "Key": name, "ResponseContentDisposition": disposition}
        with self._errors(key):
            url: str = self._link_client.generate_presigned_url(
                "get_object", Params=parameters, ExpiresIn=expires_seconds
            )
        return url

    def keys_before(self, moment: datetime) -> Iterator[str]:
        """The keys of all objects stored before then. Raises StoreError."""
        for page in self._pages("list_objects_v2"):
            for found in page.get("Contents", ()):
                if found["LastModified"] < moment:
                    yield found["Key"].removeprefix(self._prefix)

    def discard_incomplete(self, moment: datetime) -> int:
        """Abort multipart uploads begun before then. Raises StoreError."""
        stale = [
            {"Key": found["Key"], "UploadId": found["UploadId"]}
            for page in self._pages("list_multipart_uploads")
            for found in page.get("Uploads", ())
            if found["Initiated"] < moment
        ]
        for upload in stale:
            with suppress(NotFoundError), self._errors(upload["Key"]):
                self._client.abort_multipart_upload(Bucket=self._bucket, **upload)
        return len(stale)

    def _pages(self, operation: str) -> Iterator[dict[str, Any]]:
        with self._errors(self._prefix):
            yield from self._client.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=self._prefix)

    def check(self) -> None:
        """Raises StoreError unless an object can be written."""
        probe = f"{self._prefix}.check"
        with self._errors(probe):
            self._client.put_object(Bucket=self._bucket, Key=probe, Body=b"")

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING:
                raise NotFoundError(f"There is no stored object {key!r}.", code="object_not_found") from error
            raise StoreError(f"The bucket {self._bucket!r} answers {code}: {error}.") from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, OSError) as error:
            raise StoreError(f"The bucket {self._bucket!r} cannot be reached: {error}.") from error


class _Stream(io.RawIOBase):
    """Chunks as a file that can only be read on, as boto3 takes it: one part of it is in memory at a time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self.failure: OSError | None = None  # of whoever gives the chunks: it looks as one of the bucket's would

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        while size < 0 or len(self._buffer) < size:
            try:
                chunk = next(self._chunks, None)
            except OSError as error:
                self.failure = error
                raise
            if chunk is None:
                break
            self._buffer += chunk
        taken = bytes(self._buffer[: size if size >= 0 else None])
        del self._buffer[: len(taken)]
        return taken
