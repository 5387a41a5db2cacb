"""Reading an upload: the file goes from the socket to the store in chunks, hashed on the way, never held whole.

The store takes a plain iterator and runs in a thread; a bounded channel between it and the parser slows the client
down to the store's speed. Threads for uploads are counted apart, so that slow clients cannot starve everyone else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from core.datasets.service import Upload, upload_purpose
from core.errors import InvalidRequestError, UnsupportedMediaTypeError

_CHUNKS_IN_FLIGHT = 8
_LONGEST_FIELD_BYTES = 1024
_MOST_FIELDS = 16
_FIELDS = ("file", "purpose")

StoreUpload = Callable[[str, Iterable[bytes]], Upload]  # file name and bytes


@dataclass
class _Part:
    """A part of the form: a small field, or the file, whose bytes are passed on as they come."""

    headers: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytes = b""


@dataclass(frozen=True)
class _FileStarts:
    filename: str


@dataclass(frozen=True)
class _FileEnds:
    pass


_Event = _FileStarts | bytes | _FileEnds


@dataclass
class _Form:
    """Turns the parser's callbacks into fields and, in `events`, into what happens to the file."""

    fields: dict[str, str] = field(default_factory=dict)
    events: list[_Event] = field(default_factory=list)
    known: tuple[str, ...] = _FIELDS
    files: int = 0
    upload: Upload | None = None
    is_complete: bool = False
    _part: _Part = field(default_factory=_Part)
    _header: bytes = b""
    _header_value: bytes = b""

    def parser(self, boundary: bytes) -> MultipartParser:
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:  # a boundary that is too long
            raise _malformed(error) from None

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._part.headers[self._header.decode("latin-1").lower()] = self._header_value
        self._header = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition"))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            self._part.filename = options[b"filename"].decode("utf-8", "replace")
        self._check_part()
        if self._part.filename is not None:
            self.events.append(_FileStarts(self._part.filename))

    def _check_part(self) -> None:
        name, is_file = self._part.name, self._part.filename is not None
        if name not in self.known:
            raise InvalidRequestError(
                f"Unknown form field {name!r}; an upload has the fields 'file' and 'purpose'.",
                code="unknown_field",
                param=name or None,
            )
        if is_file != (name == "file"):
            problem = "must be a file, with a file name" if name == "file" else "must be text, not a file"
            raise InvalidRequestError(f"{name} {problem}.", param=name)
        self.files += is_file
        if self.files > 1:
            raise InvalidRequestError("Send one file per request.", param="file")
        if len(self.fields) >= _MOST_FIELDS:
            raise InvalidRequestError("The form has too many fields.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is not None:
            self.events.append(data[start:end])
            return
        self._part.value += data[start:end]
        if len(self._part.value) > _LONGEST_FIELD_BYTES:
            raise InvalidRequestError(
                f"{self._part.name} is longer than {_LONGEST_FIELD_BYTES:,} bytes.", param=self._part.name
            )

    def _on_part_end(self) -> None:
        if self._part.filename is not None:
            self.events.append(_FileEnds())
        else:
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")
            if self._part.name == "purpose":
                upload_purpose(self.fields["purpose"])

    def _on_end(self) -> None:
        self.is_complete = True


@dataclass(frozen=True)
class ReceivedForm:
    """What an upload's form held. The file's bytes are in the store."""

    upload: Upload
    purpose: str
    fields: Mapping[str, str]


async def receive_form(
    content_type: str,
    body: AsyncIterator[bytes],
    limiter: anyio.CapacityLimiter,
    store_upload: StoreUpload,
    discard: Callable[[Upload], None],
    more_fields: tuple[str, ...] = (),
) -> ReceivedForm:
    """Read a multipart form with one file, which `store_upload` stores while it arrives.

    Raises UnsupportedMediaTypeError, InvalidRequestError, and whatever `store_upload` raises. After any error the
    file is not in the store: an unfinished one never got there, a finished one goes to `discard`.
    """
    form = _Form(known=_FIELDS + more_fields)
    events = _events(form.parser(_boundary(content_type)), form, body)
    async with contextlib.AsyncExitStack() as on_error:
        async for event in events:
            if isinstance(event, _FileStarts):
                form.upload = await _store(event.filename, events, limiter, store_upload)
                on_error.push_async_callback(_in_thread_whatever_happens, discard, form.upload)
        received = _complete(form)
        on_error.pop_all()
    return received


async def _in_thread_whatever_happens(discard: Callable[[Upload], None], upload: Upload) -> None:
    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(discard, upload)


def _complete(form: _Form) -> ReceivedForm:
    if not form.is_complete:
        raise _cut_off()
    if form.upload is None:
        raise InvalidRequestError("file is required.", param="file")
    if "purpose" not in form.fields:
        raise InvalidRequestError("purpose is required: 'fine-tune'.", param="purpose")
    return ReceivedForm(form.upload, form.fields["purpose"], form.fields)


async def _events(parser: MultipartParser, form: _Form, body: AsyncIterator[bytes]) -> AsyncIterator[_Event]:
    async for chunk in body:
        if not chunk:
            continue
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from None
        events, form.events = form.events, []
        for event in events:
            yield event


class _AbortedError(Exception):
    """Raised inside the store's thread when the rest of the file will not come, so that it keeps nothing."""


async def _store(
    filename: str, events: AsyncIterator[_Event], limiter: anyio.CapacityLimiter, store_upload: StoreUpload
) -> Upload:
    """Feed the file's bytes to `store_upload` in a thread, until the file ends or either side gives up."""
    send, receive = anyio.create_memory_object_stream[bytes | _FileEnds](_CHUNKS_IN_FLIGHT)

    def work() -> Upload:
        try:
            return store_upload(filename, _chunks(receive))
        finally:
            anyio.from_thread.run_sync(receive.close)  # a sender that waits for room learns that nobody reads on

    storing = asyncio.create_task(anyio.to_thread.run_sync(work, limiter=limiter))
    async with contextlib.AsyncExitStack() as on_error:
        on_error.push_async_callback(_see_it_stop, storing)
        on_error.callback(send.close)
        await _pump(events, send)
        on_error.pop_all()
    send.close()
    return await storing


async def _see_it_stop(storing: asyncio.Task[Upload]) -> None:
    with contextlib.suppress(_AbortedError):
        await storing


async def _pump(events: AsyncIterator[_Event], send: MemoryObjectSendStream[bytes | _FileEnds]) -> None:
    """Pass the file on, its end included. Returns early where the store stopped reading: it then says why."""
    async for event in events:
        if isinstance(event, _FileStarts):
            raise AssertionError("a file starts inside a file")
        try:
            await send.send(event)
        except anyio.BrokenResourceError:
            return
        if isinstance(event, _FileEnds):
            return
    raise _cut_off()


def _chunks(receive: MemoryObjectReceiveStream[bytes | _FileEnds]) -> Iterator[bytes]:
    """The file's bytes, in the store's thread. Raises _AbortedError where they stop before the file's end."""
    while True:
        try:
            event = anyio.from_thread.run(receive.receive)
        except anyio.EndOfStream:
            raise _AbortedError from None
        if isinstance(event, _FileEnds):
            return
        yield event


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind.lower() != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaTypeError(
            f"Upload files as multipart/form-data with a boundary; got {content_type or 'no content type'!r}."
        )
    return boundary


def _malformed(error: FormParserError) -> InvalidRequestError:
    return InvalidRequestError(f"The multipart body is malformed: {error}.", code="invalid_multipart")


def _cut_off() -> InvalidRequestError:
    return InvalidRequestError(
        "The multipart body ends in the middle. Nothing was kept; send it again.", code="invalid_multipart"
    )
