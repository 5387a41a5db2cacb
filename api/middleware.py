"""What happens to every request: an id, a log line, metrics, a limit on the body, and careful headers."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import RequestMetrics
from api.numbers import whole_number
from api.schemas.errors import envelope
from core.accounts.service import Actor
from core.acting import Acting, acting_as
from core.errors import FileTooLargeError, SlowRequestError
from core.ids import new_id
from core.logging import LONGEST_VALUE
from core.throttle.service import Allowance

SLOWEST_BYTES_PER_SECOND = 16 * 1024
YEAR_SECONDS = 365 * 24 * 3600
UPLOAD_PATHS = ("/v1/files", "/new/files")
MULTIPART_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and the small fields beside the file

# A page of this service may load nothing and be framed by no one; pages that need more say so themselves.
_STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
QUIET_PATHS = re.compile(r"/(healthz|readyz|metrics)")

Unexpected = Callable[[Request, Exception], Awaitable[Response]]

log = structlog.get_logger()


def finish_headers(headers: MutableHeaders, scope: Scope) -> None:
    """Add what every response carries; what a handler set stays."""
    headers["x-request-id"] = scope.get("request_id", "")
    headers.setdefault("x-content-type-options", "nosniff")
    headers.setdefault("referrer-policy", "no-referrer")
    headers.setdefault("content-security-policy", _STRICT_POLICY)
    headers.setdefault("cache-control", "no-store")
    headers.setdefault("permissions-policy", "camera=(), geolocation=(), microphone=()")
    headers.setdefault("cross-origin-opener-policy", "same-origin")
    if scope.get("scheme") == "https":
        headers.setdefault("strict-transport-security", f"max-age={YEAR_SECONDS}")
    allowance: Allowance | None = scope.get("state", {}).get("allowance")
    if allowance is not None:
        headers["x-ratelimit-limit-requests"] = str(allowance.limit)
        headers["x-ratelimit-remaining-requests"] = str(allowance.remaining)
        headers["x-ratelimit-reset-requests"] = f"{allowance.reset_seconds}s"


class RequestMiddleware:
    """Names the request, binds the name to its logs, measures it and finishes its response's headers.

    Any exception that nothing else has answered is answered here by `unexpected`. Were it raised on, the server would
    close the connection behind the response, and whatever its client sends next on it would be lost.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, unexpected: Unexpected) -> None:
        self.app = app
        self.metrics = metrics
        self.unexpected = unexpected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status, is_answered = 500, False
        scope["request_id"] = new_id("req_")

        async def send_finished(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                finish_headers(MutableHeaders(scope=message), scope)
            await send(message)

        address = scope["client"][0] if scope.get("client") else None  # behind a trusted proxy, what that says
        with (
            structlog.contextvars.bound_contextvars(request_id=scope["request_id"], address=address),
            acting_as(Acting(address=address)),
        ):
            try:
                await self.app(scope, receive, send_finished)
            except Exception as error:
                if is_answered:  # half a response has no other end than the connection's
                    raise
                response = await self.unexpected(Request(scope), error)
                await response(scope, receive, send_finished)
            finally:
                seconds = time.perf_counter() - started
                self.metrics.observe(scope["method"], _route(scope), status, seconds)
                if not QUIET_PATHS.fullmatch(scope["path"]):
                    log.info(
                        "request",
                        method=scope["method"],
                        path=_path(scope),
                        status=status,
                        milliseconds=round(seconds * 1000, 1),
                        **_caller(scope),
                    )


class BodyLimitMiddleware:
    """Refuses bodies above a limit, by their declared length or while they arrive, and those that never end."""

    def __init__(self, app: ASGIApp, max_request_bytes: int, max_upload_bytes: int, patience_seconds: float) -> None:
        self.app = app
        self.max_request_bytes = max_request_bytes
        self.max_upload_bytes = max_upload_bytes
        self.patience_seconds = patience_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = scope["method"] == "POST" and scope["path"] in UPLOAD_PATHS
        limit = self.max_upload_bytes + MULTIPART_OVERHEAD_BYTES if is_upload else self.max_request_bytes
        refusal = self._refusal(is_upload)
        declared = whole_number(Headers(scope=scope).get("content-length", ""))
        if declared is not None and declared > limit:
            await JSONResponse(envelope(refusal.body), status_code=refusal.status)(scope, receive, send)
            return
        received, is_complete, waited_seconds = 0, False, 0.0

        async def receive_limited() -> Message:
            nonlocal received, is_complete, waited_seconds
            if is_complete:  # who asks on waits for the client to go away
                return await receive()
            # Slow ones are allowed to be slow, not to hold a place for ever.
            # What passes while nobody asks for more is not the client's doing.
            allowed_seconds = self.patience_seconds + received / SLOWEST_BYTES_PER_SECOND
            asked_at = time.monotonic()
            try:
                async with asyncio.timeout(allowed_seconds - waited_seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    SlowRequestError.status,
                    f"{received:,} bytes of the body came in {allowed_seconds:,.0f} seconds, and then no more. Send it "
                    "again over a faster connection.",
                ) from None
            waited_seconds += time.monotonic() - asked_at
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit:
                # FastAPI passes HTTPException through its body reader and wraps everything else.
                raise HTTPException(refusal.status, refusal.message)
            return message

        await self.app(scope, receive_limited, send)

    def _refusal(self, is_upload: bool) -> FileTooLargeError:
        if is_upload:
            return FileTooLargeError(
                f"The file is larger than the limit upload_bytes, {self.max_upload_bytes:,}. Nothing of it was "
                "kept. Split it, or compress it with gzip.",
                param="file",
            )
        return FileTooLargeError(f"The body is larger than {self.max_request_bytes:,} bytes.", code="request_too_large")


def _caller(scope: Scope) -> dict[str, str]:
    """Whose request it was, once that is known."""
    actor: Actor | None = scope.get("state", {}).get("actor")
    if actor is None:
        return {}
    return {"organization": actor.organization_id, "user": actor.user_id, "key": actor.key_prefix or "session"}


def _path(scope: Scope) -> str:
    """What the log says of the path: looking through a long one for secrets takes as long as answering."""
    path: str = scope["path"]
    return path if len(path) <= LONGEST_VALUE else f"[{len(path):,} characters]"


def _route(scope: Scope) -> str:
    """The route's template, so that ids do not multiply metrics."""
    return getattr(scope.get("route"), "path", "unmatched")
