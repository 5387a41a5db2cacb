"""What handlers are given: the open runtime, who is calling, which page, and what identifies a create."""

import hashlib
import time
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Header, Query, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from api.numbers import whole_number
from core.accounts import service as accounts
from core.accounts.models import Scope
from core.accounts.service import LAST_USED_RESOLUTION, Actor
from core.acting import ActorKind, acting
from core.errors import AuthenticationError, PermissionDeniedError
from core.idempotency.service import CreateRequest
from core.runtime import Runtime
from core.throttle.service import MINUTE, Rate

SESSION_COOKIE = "tunewright_session"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}

_bearer = HTTPBearer(auto_error=False, scheme_name="api_key", description="An API key: `Authorization: Bearer tw-…`.")
_cookie = APIKeyCookie(
    name=SESSION_COOKIE, auto_error=False, scheme_name="session", description="A browser signed in by link."
)


def open_runtime_of(request: Request) -> Runtime:
    """The runtime the application opened when it started."""
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(open_runtime_of)]


class KeyUses:
    """When this process last recorded the use of each key, so that a busy key costs one write a minute."""

    def __init__(self) -> None:
        self._noted: dict[str, float] = {}

    def is_due(self, key_id: str) -> bool:
        """Whether the use should be recorded now; asking counts as recording."""
        now = time.monotonic()
        if now - self._noted.get(key_id, float("-inf")) < LAST_USED_RESOLUTION.total_seconds():
            return False
        self._noted[key_id] = now
        return True


def caller_address(request: Request) -> str:
    """Where the request comes from; behind a proxy that the server trusts, what that says."""
    return request.client.host if request.client else "unknown"


def limit_address(request: Request, runtime: RuntimeDep) -> str:
    """The caller's address, its request counted. Raises RateLimitError."""
    address = caller_address(request)
    rate = Rate("requests from this address", runtime.settings.address_requests_per_minute, MINUTE)
    runtime.throttle.take(rate, address)
    return address


AddressDep = Annotated[str, Depends(limit_address)]


def authenticate(
    request: Request,
    runtime: RuntimeDep,
    address: AddressDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> Actor:
    """The caller, its request counted, with a scope that allows the request's method.

    Raises AuthenticationError, RateLimitError, and PermissionDeniedError for another site's request or a scope that
    does not suffice.
    """
    actor = replace(_identified(request, runtime, bearer, cookie), address=address)
    who = acting()
    who.user_id, who.email, who.key_prefix = actor.user_id, actor.email, actor.key_prefix
    who.kind, who.key_id = (ActorKind.API_KEY, actor.credential) if bearer is not None else (ActorKind.SESSION, None)
    request.state.actor = actor
    request.app.state.callers.know(request.state.credential, actor.organization_id)
    rate = Rate("requests of this key or session", runtime.settings.key_requests_per_minute, MINUTE)
    request.state.allowance = runtime.throttle.take(rate, actor.credential)
    accounts.require_scope(actor, Scope.READ if request.method in _SAFE_METHODS else Scope.WRITE)
    return actor


def _identified(
    request: Request, runtime: Runtime, bearer: HTTPAuthorizationCredentials | None, cookie: str | None
) -> Actor:
    if bearer is not None:
        with runtime.database.read() as session:
            actor = accounts.authenticate_key(session, bearer.credentials)
        if request.app.state.key_uses.is_due(actor.credential):
            runtime.database.run(lambda session: accounts.note_key_use(session, actor.credential))
        return actor
    if cookie is not None:
        refuse_other_sites(request, runtime.settings.public_url)
        with runtime.database.read() as session:
            return accounts.authenticate_session(session, cookie)
    raise AuthenticationError("You did not provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")


def refuse_other_sites(request: Request, public_url: str | None) -> None:
    """A browser sends cookies along with whatever a page asks for; only our own pages may change anything."""
    if request.method in _SAFE_METHODS:
        return
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None:
        is_ours = fetch_site == "same-origin"
    else:
        ours = {_origin(str(request.base_url))} | ({_origin(public_url)} if public_url else set())
        is_ours = request.headers.get("origin") in ours
    if not is_ours:
        raise PermissionDeniedError(
            "This request was started by another site and is refused.", code="cross_site_request"
        )


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


ActorDep = Annotated[Actor, Depends(authenticate)]


def authenticate_admin(actor: ActorDep) -> None:
    """For the routes of administrators. Raises PermissionDeniedError."""
    accounts.require_scope(actor, Scope.ADMIN)


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=255,
        description="A name for this create: repeating it returns the first result.",
        examples=["3c9d1b52-7b7e-4b0a-9d0f-1f5c0f3e8c11"],
    ),
]


def identify(
    request: Request, runtime: Runtime, actor: Actor, body_sha256: str, idempotency_key: str | None
) -> CreateRequest:
    """What tells this create from others, and whether the client says that it repeats one."""
    retries = request.headers.get("x-stainless-retry-count", "0")
    return CreateRequest(
        credential=actor.credential,
        path=request.url.path,
        body_sha256=body_sha256,
        idempotency_key=idempotency_key,
        is_retry=(whole_number(retries) or 0) > 0,
        window_seconds=runtime.settings.retry_window_seconds,
    )


async def create_request(
    request: Request, runtime: RuntimeDep, actor: ActorDep, idempotency_key: IdempotencyKey = None
) -> CreateRequest:
    """As `identify`, for a JSON body, which has been read already."""
    body = await request.body()
    return identify(request, runtime, actor, hashlib.sha256(body).hexdigest(), idempotency_key)


CreateRequestDep = Annotated[CreateRequest, Depends(create_request)]


@dataclass(frozen=True)
class PageQuery:
    """Which page of a list."""

    after: str | None
    limit: int


def page_query(
    after: Annotated[str | None, Query(max_length=500, description="Id of the last object of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="How many objects at most.")] = 20,
) -> PageQuery:
    """The page a list request asks for."""
    return PageQuery(after, limit)


PageDep = Annotated[PageQuery, Depends(page_query)]
