"""Forms that only our own pages can send, and the session they may end in.

A form carries a token derived from a cookie that pages of other sites can neither read nor set: the session's, or for
those not signed in yet a visitor's. Together with the check of where the request comes from, either suffices alone.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import Form, Request, Response
from fastapi.responses import RedirectResponse

from api import pages
from api.deps import SESSION_COOKIE, RuntimeDep, refuse_other_sites
from core.errors import PermissionDeniedError, RateLimitError, TunewrightError
from core.runtime import Runtime

VISITOR_COOKIE = "tunewright_visitor"
RETURN_COOKIE = "tunewright_return"
RETURN_SECONDS = 1800  # to find the password, or a link in the post
LONGEST_RETURN = 2000


def form_token(secret: str) -> str:
    """What a form carries to show that our page made it: 64 hex digits that do not give the cookie away."""
    return hashlib.sha256(f"form:{secret}".encode()).hexdigest()


def check_form(request: Request, runtime: RuntimeDep, csrf_token: Annotated[str, Form(max_length=64)] = "") -> None:
    """For every route that takes a form. Raises PermissionDeniedError where another site's page may have sent it."""
    refuse_other_sites(request, runtime.settings.public_url)
    check_token(request, csrf_token)


def check_token(request: Request, csrf_token: str) -> None:
    """Whether a form's token belongs to the browser that sends it. Raises PermissionDeniedError."""
    secret = request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)
    if secret is None or not hmac.compare_digest(form_token(secret).encode(), csrf_token.encode()):
        raise PermissionDeniedError(
            "This form has expired or was not made by this site. Load the page again.", code="cross_site_request"
        )


def show(request: Request, runtime: Runtime, template: str, status: int = 200, **values: object) -> Response:
    """A page with a form, its token in it as `csrf_token`."""
    secret = request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)
    new_visitor = secret is None
    secret = secret or secrets.token_urlsafe(32)
    context = {"csrf_token": form_token(secret), "sign_up_open": runtime.settings.sign_up_open, **values}
    response = pages.render(request, template, status, policy=pages.FORM_POLICY, **context)
    if new_visitor:
        response.set_cookie(
            VISITOR_COOKIE, secret, httponly=True, samesite="strict", secure=is_secure(request, runtime), path="/"
        )
    return response


def signed_in(request: Request, runtime: Runtime, session_token: str) -> Response:
    """On to the page that was asked for first, with the session in a cookie that scripts and other sites' forms do
    not get."""
    kept = unquote(request.cookies.get(RETURN_COOKIE, ""))
    response = RedirectResponse(kept if is_own_page(kept) else "/", status_code=303)
    response.delete_cookie(RETURN_COOKIE, path="/")
    response.set_cookie(
        SESSION_COOKIE,
        session_token,
        max_age=runtime.settings.session_seconds,
        httponly=True,
        samesite="lax",
        secure=is_secure(request, runtime),
        path="/",
    )
    response.delete_cookie(VISITOR_COOKIE, path="/")
    return response


def sign_in_address(wanted: str) -> str:
    """Where to sign in, so that it ends on the page that was wanted."""
    return f"/sign-in?next={quote(wanted, safe='/')}" if wanted != "/" and is_own_page(wanted) else "/sign-in"


def keep_return(request: Request, runtime: Runtime, response: Response, wanted: str) -> None:
    """Remember where signing in shall end, by whichever way: a password, a link, a new account."""
    if not is_own_page(wanted):
        response.delete_cookie(RETURN_COOKIE, path="/")
        return
    response.set_cookie(
        RETURN_COOKIE,
        quote(wanted, safe="/"),
        max_age=RETURN_SECONDS,
        httponly=True,
        samesite="lax",
        secure=is_secure(request, runtime),
        path="/",
    )


def is_own_page(address: str) -> bool:
    """Whether an address is a path of this service, however a browser reads it: `//`, `/\\` and `/<tab>/` lead away."""
    is_path = address.startswith("/") and not address.startswith(("//", "/sign-")) and "\\" not in address
    return is_path and address.isascii() and address.isprintable() and len(address) <= LONGEST_RETURN


def is_secure(request: Request, runtime: Runtime) -> bool:
    """Whether browsers reach this service over TLS, so that its cookies are never sent without."""
    return request.url.scheme == "https" or (runtime.settings.public_url or "").startswith("https:")


@dataclass
class Outcome:
    """What a form led to."""

    response: Response = field(default_factory=Response)


@contextmanager
def shown_again(request: Request, runtime: Runtime, template: str, **values: object) -> Iterator[Outcome]:
    """Where the block raises an expected error, the outcome is the form again, with what it says."""
    outcome = Outcome()
    try:
        yield outcome
    except TunewrightError as error:
        outcome.response = show(request, runtime, template, error.status, problem=error.message, **values)
        if isinstance(error, RateLimitError):
            outcome.response.headers["retry-after"] = str(error.retry_after_seconds)
