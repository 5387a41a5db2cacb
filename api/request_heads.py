"""Bounds on a request's head, which is read before anything is known of the caller.

A server that reads heads of any length, for any time, holds their memory and their connections for nobody.
"""

import asyncio

import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.schemas.errors import envelope
from core.errors import HeadTooLargeError

LONGEST_LINE_BYTES = 16 * 1024
LONGEST_HEADERS_BYTES = 32 * 1024
LONGEST_UNFINISHED_BYTES = 256 * 1024  # so that most of what is too long gets an answer that says so
HEAD_SECONDS = 30.0
REFUSED_AFTER_SECONDS = 0.5  # nobody sends these by mistake, and whoever sends many is to send fewer

log = structlog.get_logger()


class HeadLimitMiddleware:
    """Refuses requests whose line or headers are too long."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = _problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            refusal = HeadTooLargeError(problem)
            await asyncio.sleep(REFUSED_AFTER_SECONDS)
            response = JSONResponse(envelope(refusal.body), status_code=refusal.status, headers={"connection": "close"})
            await response(scope, receive, send)


def _problem(scope: Scope) -> str | None:
    line = len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if line > LONGEST_LINE_BYTES:
        return f"The request's path and query have {line:,} bytes; {LONGEST_LINE_BYTES:,} are read. Shorten them."
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    if headers > LONGEST_HEADERS_BYTES:
        return f"The request's headers have {headers:,} bytes; {LONGEST_HEADERS_BYTES:,} are read. Send fewer."
    return None


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which lets go of connections whose head is too long or never ends."""

    _is_reading_head = True
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the first head its time."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what came of the head; a head that ends is measured whole by the middleware."""
        if self._is_reading_head and self._patience is None:
            self._wait_for_head()
        super().data_received(data)
        if self._is_reading_head:
            self._head_bytes += len(data)
            if self._head_bytes > LONGEST_UNFINISHED_BYTES:
                self._let_go("too long")

    def on_headers_complete(self) -> None:
        """The head is here: what follows is the body's."""
        self._is_reading_head, self._head_bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes are another head's. Between requests uvicorn itself counts how long a connection idles."""
        self._is_reading_head = True
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self._let_go, "not complete in time")

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _let_go(self, reason: str) -> None:
        if not self.transport.is_closing():
            log.info("request_head_refused", reason=reason, received_bytes=self._head_bytes)
            self.send_400_response(f"The head of the request is {reason}.")
