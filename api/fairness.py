"""Fair shares of this process: whatever one caller sends, the requests of the others are worked on meanwhile.

Requests are worked on by one interpreter and a few threads. So each caller has a line of its own, from which few are
worked on at once, and who comes back before the time that a refusal named waits: that costs a connection, while
finding out who asks for what, and refusing it again, would cost the time of all others.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.deps import SESSION_COOKIE
from api.errors import error_response
from api.middleware import QUIET_PATHS, UPLOAD_PATHS
from api.numbers import whole_number
from core.errors import RateLimitError

WORKING_OF_ONE = 2  # requests of a caller that are worked on at once
WORKING_SECONDS = 0.5  # what takes longer waits for something else than this process
UNANSWERED_OF_ONE = 16  # of an organization, begun and not answered: each may hold one of 40 threads
WAITING_OF_ONE = 256  # in a caller's line: each holds a connection
REFUSED_OFTEN = 8  # refusals in a row, after which a caller is kept to what they said
WAIT_UNSAID_SECONDS = 0.5  # where a refusal names no time
LONGEST_WAIT_SECONDS = 5.0
BETWEEN_SECONDS = 0.1  # two requests of a caller that were kept waiting
REMEMBERED, SHOWN_CHARACTERS = 10_000, 200


class Callers:
    """Whose credentials are, as far as this process has seen them lately."""

    def __init__(self) -> None:
        self._organizations: OrderedDict[str, str] = OrderedDict()

    def know(self, credential: str, organization_id: str) -> None:
        """Remember whose this is, for the requests to come."""
        self._organizations[credential] = organization_id
        self._organizations.move_to_end(credential)
        while len(self._organizations) > REMEMBERED:
            self._organizations.popitem(last=False)

    def organization_of(self, credential: str) -> str | None:
        """Whose it was when it was last used."""
        return self._organizations.get(credential)


class Place:
    """A request's place in its caller's line."""

    def __init__(self, line: "Line") -> None:
        self._line = line
        self._is_working = self._is_unanswered = True

    def stop_working(self) -> None:
        """It is not, or no longer, this process that the request waits for."""
        self._line.working -= self._is_working
        self._is_working = False
        self._line.let_in()

    def expect_no_answer(self) -> None:
        """It does not count among the unanswered: no thread is held all the time."""
        self._line.unanswered -= self._is_unanswered
        self._is_unanswered = False

    def answer(self) -> None:
        """The answer has begun."""
        self.expect_no_answer()
        self.stop_working()


@dataclass
class Line:
    """The requests of one caller."""

    most_unanswered: float
    working: int = 0
    unanswered: int = 0
    waiting: deque[asyncio.Future[Place]] = field(default_factory=deque)

    def let_in(self) -> None:
        """Begin those for which there is room, in the order in which they came."""
        while self.waiting and self.working < WORKING_OF_ONE and self.unanswered < self.most_unanswered:
            future = self.waiting.popleft()
            if not future.done():  # else its request was given up
                self.working += 1
                self.unanswered += 1
                future.set_result(Place(self))


class RequestPlaces:
    """A line for each caller. To be used by one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    @asynccontextmanager
    async def hold(self, caller: str, *, most_unanswered: float = math.inf) -> AsyncIterator[Place]:
        """Wait for a place, and keep it while the block runs. Raises RateLimitError where too many wait already."""
        line = self._lines.setdefault(caller, Line(most_unanswered))
        if len(line.waiting) >= WAITING_OF_ONE:
            raise RateLimitError(f"{WAITING_OF_ONE} requests of this caller wait already. Send fewer at once.")
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        line.waiting.append(future)
        line.let_in()
        timer: asyncio.TimerHandle | None = None
        try:
            place = await future
            timer = asyncio.get_running_loop().call_later(WORKING_SECONDS, place.stop_working)
            yield place
        finally:
            if timer is not None:
                timer.cancel()
            if future.done() and not future.cancelled():
                future.result().answer()
            elif future in line.waiting:
                line.waiting.remove(future)
            if not (line.working or line.unanswered or line.waiting):
                self._lines.pop(caller, None)


@dataclass
class _Refused:
    in_a_row: int = 0
    until: float = 0.0  # when the caller was told to come back
    latest: float = 0.0  # when the last of those that are kept waiting goes on


class Refusals:
    """Who was refused often, and how long their next request waits. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._refused: OrderedDict[tuple[str, str], _Refused] = OrderedDict()

    def wait_seconds(self, what: tuple[str, str], now: float) -> float:
        """How long a request for it waits; more than `LONGEST_WAIT_SECONDS`: there are too many before it."""
        refused = self._refused.get(what)
        if refused is None or refused.in_a_row < REFUSED_OFTEN or now >= refused.until:
            return 0.0
        turn = max(min(refused.until, now + LONGEST_WAIT_SECONDS - BETWEEN_SECONDS), refused.latest + BETWEEN_SECONDS)
        if turn - now <= LONGEST_WAIT_SECONDS:
            refused.latest = turn
        return turn - now

    def note(self, what: tuple[str, str], retry_after_seconds: float | None, now: float) -> None:
        """Note how a request ended: None, it was not refused."""
        if retry_after_seconds is None:
            self._refused.pop(what, None)
            return
        refused = self._refused.setdefault(what, _Refused())
        refused.in_a_row += 1
        refused.until = max(refused.until, now + retry_after_seconds)
        while len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)


class FairnessMiddleware:
    """Keeps each caller to its share: an organization, or an address while it is not known whose a request is."""

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self.app = app
        self._callers = callers
        self._places, self._refusals = RequestPlaces(), Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or QUIET_PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        credential = credential_of(scope)
        scope.setdefault("state", {})["credential"] = credential
        organization = self._callers.organization_of(credential) if credential is not None else None
        async with AsyncExitStack() as held:
            request = _Request(scope, organization, self._places, held)
            try:
                # An address may be that of many, so nothing that one of them does keeps the others waiting.
                if organization is not None:
                    await self._keep_waiting(request.what)
                await request.arrive()
            except RateLimitError as error:
                response = error_response(error)
                response.headers["connection"] = "close"
                await response(scope, receive, send)
                return

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self._refusals.note(request.what, _told_to_wait(message), time.monotonic())
                    request.answer()
                await send(message)

            await self.app(scope, partial(request.receive, receive), send_noted)

    async def _keep_waiting(self, what: tuple[str, str]) -> None:
        """Wait where the caller was told to. Raises RateLimitError, after a while, where too many wait so."""
        seconds = self._refusals.wait_seconds(what, time.monotonic())
        if not seconds:
            return
        await asyncio.sleep(min(seconds, LONGEST_WAIT_SECONDS))
        if seconds > LONGEST_WAIT_SECONDS:
            raise RateLimitError(
                f"This was refused {REFUSED_OFTEN} times and more, and asked again before the time that each refusal "
                "named in its header retry-after. Wait as long as it says.",
                retry_after_seconds=int(LONGEST_WAIT_SECONDS),
            )


class _Request:
    """A request and its place in the caller's line, which it gives back at its end."""

    def __init__(self, scope: Scope, organization: str | None, places: RequestPlaces, held: AsyncExitStack) -> None:
        caller = organization or f"address {scope['client'][0] if scope.get('client') else ''}"
        self.what = caller, scope["path"][:SHOWN_CHARACTERS]
        self._scope, self._places, self._held = scope, places, held
        self._most_unanswered = UNANSWERED_OF_ONE if organization is not None else math.inf
        self._place: Place | None = None

    async def arrive(self) -> None:
        """Take a place, unless a body is to come first. Raises RateLimitError."""
        if self._scope["path"] in UPLOAD_PATHS:  # these have places of their own too, and last as they like
            (await self._begin()).expect_no_answer()
        elif not _has_body(self._scope):
            await self._begin()

    async def receive(self, receive: Receive) -> Message:
        """The next part of the body. Who sends it slowly keeps nobody waiting: a place is taken when it is here."""
        message = await receive()
        if self._place is None and message["type"] == "http.request" and not message.get("more_body", False):
            try:
                await self._begin()
            except RateLimitError as error:  # FastAPI passes HTTPException through its body reader
                raise HTTPException(error.status, error.message) from None
        return message

    def answer(self) -> None:
        """The answer has begun."""
        if self._place is not None:
            self._place.answer()

    async def _begin(self) -> Place:
        hold = self._places.hold(self.what[0], most_unanswered=self._most_unanswered)
        self._place = await self._held.enter_async_context(hold)
        return self._place


def credential_of(scope: Scope) -> str | None:
    """A digest of what the caller shows of itself: an API key, or a session's cookie."""
    headers = Headers(scope=scope)
    shown = headers.get("authorization") or cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE)
    return hashlib.sha256(shown.encode()).hexdigest() if shown else None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _told_to_wait(message: Message) -> float | None:
    if message["status"] != RateLimitError.status:
        return None
    said = whole_number(MutableHeaders(scope=message).get("retry-after", ""))
    return WAIT_UNSAID_SECONDS if said is None else float(said)
