"""The bytes of a data file: unpacked, as UTF-8 without byte order mark, and never more than a limit of them."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import zstandard

from core.datasets.wide_text import wide_encoding
from core.errors import InvalidDatasetError

__all__ = ["MAX_FILE_BYTES", "MAX_ROW_BYTES", "find_invalid_utf8", "open_source", "unpacked_limit"]

MAX_ROW_BYTES = 16 * 1024**2
MAX_FILE_BYTES = 4 * 1024**3  # once unpacked; a plain upload is smaller than that anyway
# Text compresses 3 to 30 times; 100 leaves room for repetitive tables and none for a bomb.
MAX_EXPANSION = 100
MIN_EXPANDED_BYTES = 64 * 1024**2
_BUFFER_BYTES = 256 * 1024
_GZIP_MAGIC, _ZSTD_MAGIC, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unpacked_limit(packed_bytes: int) -> int:
    """How much a file of this size may hold once it is unpacked."""
    return min(MAX_FILE_BYTES, max(MIN_EXPANDED_BYTES, packed_bytes * MAX_EXPANSION))


class _Transcoded(io.RawIOBase):
    """The bytes of `source`, which are in `encoding`, as UTF-8. Raises InvalidDatasetError where they are not."""

    def __init__(self, source: _Readable, encoding: str) -> None:
        self._source, self._encoding = source, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            data = self._source.read(_BUFFER_BYTES)
            try:
                self._left = self._decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                raise InvalidDatasetError(
                    f"The file begins as {self._encoding.upper()} and is not all of it ({error}). "
                    "Save it with the encoding UTF-8 and upload it again.",
                    code="not_utf8",
                ) from error
            if not data:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of `packed`. Raises InvalidDatasetError when damaged or larger than `limit_bytes`."""

    def __init__(self, packed: _Readable, limit_bytes: int) -> None:
        self._packed = packed
        self._left = limit_bytes
        self._limit_bytes = limit_bytes

    @classmethod
    def buffered(cls, packed: _Readable, limit_bytes: int) -> io.BufferedReader:
        return io.BufferedReader(cls(packed, limit_bytes), _BUFFER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._packed.read(len(buffer))
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            raise InvalidDatasetError(
                f"The compressed file is damaged or cut off ({error}). Compress it again and repeat the upload.",
                code="damaged_file",
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise InvalidDatasetError(
                f"The compressed file unpacks to more than {self._limit_bytes:,} bytes, the most that a file of its "
                "size may hold. Upload it uncompressed, or in parts.",
                code="file_too_large",
            )
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_source(path: Path) -> Iterator[io.BufferedReader]:
    """The file's unpacked bytes after any byte order mark, UTF-16 as UTF-8. Gzip and Zstandard are known by content.

    Raises InvalidDatasetError, here for an empty file and while reading for damaged or exploding compression.
    """
    with ExitStack() as stack:
        file: io.BufferedReader = stack.enter_context(io.BufferedReader(io.FileIO(path), _BUFFER_BYTES))
        limit_bytes = unpacked_limit(path.stat().st_size)
        source = file
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP_MAGIC):
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=file))
            source = _Unpacked.buffered(unzipped, limit_bytes)
        elif magic == _ZSTD_MAGIC:
            # The window bounds what the decoder holds: 128 MiB is zstd's own limit without --long.
            decoder = zstandard.ZstdDecompressor(max_window_size=128 * 1024**2)
            reader = stack.enter_context(decoder.stream_reader(file, read_across_frames=True))
            source = _Unpacked.buffered(reader, limit_bytes)
        head = source.peek(4)
        if encoding := wide_encoding(head):
            source = io.BufferedReader(_Transcoded(source, encoding), _BUFFER_BYTES)
            head = source.peek(4)
        if head.startswith(_BOM):
            source.read(len(_BOM))
            head = source.peek(4)
        if not head:
            raise InvalidDatasetError("The file is empty. Upload one with at least 2 rows.", code="empty_file")
        yield source


def find_invalid_utf8(path: Path) -> InvalidDatasetError | None:
    """Read the file again to say where it stops being UTF-8. Offsets count unpacked bytes from 0, lines from 1."""
    offset, line = 0, 1
    with open_source(path) as source:
        rest = b""
        while chunk := source.read(_BUFFER_BYTES):
            data = rest + chunk
            try:
                data.decode()
            except UnicodeDecodeError as error:
                is_cut_off = error.end == len(data) and error.reason == "unexpected end of data"
                if not is_cut_off:
                    return _invalid_utf8(
                        data[error.start], offset + error.start, line + data.count(b"\n", 0, error.start)
                    )
                rest = data[error.start :]
            else:
                rest = b""
            used = len(data) - len(rest)
            offset += used
            line += data.count(b"\n", 0, used)
    return _invalid_utf8(rest[0], offset, line) if rest else None


def _invalid_utf8(byte: int, offset: int, line: int) -> InvalidDatasetError:
    return InvalidDatasetError(
        f"The file is not UTF-8: line {line} holds byte 0x{byte:02x} at offset {offset:,}. "
        "Save it with the encoding UTF-8 and upload it again.",
        code="not_utf8",
    )
