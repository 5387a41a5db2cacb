"""Forms that only our own pages can send, and the session they may end in.

A form carries a token derived from a cookie that pages of other sites can neither read nor set: the session's, or for
those not signed in yet a visitor's. Together with the check of where the request comes from, either suffices alone.
"""

import hashlib
import hmac
import secrets
from typing import Annotated
from urllib.parse import quote, unquote

from fastapi import Form, Request, Response
from fastapi.responses import RedirectResponse

from api import pages
from api.deps import SESSION_COOKIE, RuntimeDep, refuse_other_sites
from core.errors import InvalidRequestError, PermissionDeniedError
from core.runtime import Runtime

VISITOR_COOKIE = "tunewright_visitor"
RETURN_COOKIE = "tunewright_return"
RETURN_SECONDS = 1800  # to find the password, or a link in the post
LONGEST_RETURN = 2000


def form_token(secret: str) -> str:
    """What a form carries to show that our page made it: 64 hex digits that do not give the cookie away."""
    return hashlib.sha256(f"form:{secret}".encode()).hexdigest()


def secret_of(request: Request) -> str | None:
    """The cookie that the browser's forms are bound to: its session's, or a visitor's."""
    return request.cookies.get(SESSION_COOKIE) or request.cookies.get(VISITOR_COOKIE)


async def read_form(request: Request) -> dict[str, str]:
    """The texts of a form, for a route that does not declare its fields. Raises InvalidRequestError."""
    fields = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    for name, value in fields.items():
        if _has_half_characters(name + value):
            raise InvalidRequestError("The form is not UTF-8: a field of it holds half a surrogate pair.")
    return fields


def _has_half_characters(text: str) -> bool:
    """Whether it holds what some of the charsets make that a form may name, and UTF-8 cannot say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_form(request: Request, runtime: RuntimeDep, csrf_token: Annotated[str, Form(max_length=64)] = "") -> None:
    """For every route that takes a form. Raises PermissionDeniedError where another site's page may have sent it."""
    refuse_other_sites(request, runtime.settings.public_url)
    check_token(request, csrf_token)


def check_token(request: Request, csrf_token: str) -> None:
    """Whether a form's token belongs to the browser that sends it. Raises PermissionDeniedError."""
    secret = secret_of(request)
    if secret is None or not hmac.compare_digest(form_token(secret).encode(), csrf_token.encode()):
        raise PermissionDeniedError(
            "This form has expired or was not made by this site. Load the page again.", code="cross_site_request"
        )


def show(request: Request, runtime: Runtime, template: str, status: int = 200, **values: object) -> Response:
    """A page with a form, its token in it as `csrf_token`."""
    secret = secret_of(request)
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
