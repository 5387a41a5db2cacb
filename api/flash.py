"""What a form's answer says on the page behind its redirect, once: so that a reload never sends the form again.

It travels in a cookie of that page alone, encrypted with a key derived from the session's cookie, or the visitor's: a
new API key is in no address, no log and no database, and nothing can be read or forged without that cookie.
"""

import base64
import hashlib
import json
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from api.deps import open_runtime_of
from api.forms import is_secure, secret_of
from core.errors import TunewrightError

FLASH_COOKIE = "tunewright_flash"
KEPT_SECONDS = 300  # for a browser that is slow to follow
LONGEST_VALUE = 700  # browsers drop cookies above 4096 bytes without a word


def see_other(path: str) -> Response:
    """On to another page behind a form."""
    return RedirectResponse(path, status_code=303)


def carry(request: Request, path: str, **said: str) -> Response:
    """On to the page at `path`, which shows what is said, once."""
    response = see_other(path)
    kept = json.dumps({name: value[:LONGEST_VALUE] for name, value in said.items()}, ensure_ascii=False)
    response.set_cookie(
        FLASH_COOKIE,
        _cipher(request).encrypt(kept.encode()).decode(),
        max_age=KEPT_SECONDS,
        path=urlsplit(path).path,
        httponly=True,
        samesite="lax",
        secure=is_secure(request, open_runtime_of(request)),
    )
    return response


def carry_problem(request: Request, path: str, error: TunewrightError, **said: str) -> Response:
    """On to the page at `path`, which shows the error and whatever else is said, once."""
    request_id = request.scope.get("request_id", "")
    return carry(request, path, problem=error.message, problem_code=error.code, problem_request=request_id, **said)


def read(request: Request) -> dict[str, str]:
    """What the form before said, where the session is still the same and it is not too long ago."""
    token = request.cookies.get(FLASH_COOKIE)
    if token is None:
        return {}
    try:
        said: dict[str, str] = json.loads(_cipher(request).decrypt(token, ttl=KEPT_SECONDS))
    except InvalidToken:
        return {}
    return said


def forget(request: Request, response: Response) -> None:
    """Have the browser drop what it has just been shown."""
    if FLASH_COOKIE in request.cookies:
        response.delete_cookie(FLASH_COOKIE, path=request.url.path)


def _cipher(request: Request) -> Fernet:
    secret = secret_of(request) or ""
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(f"flash:{secret}".encode()).digest()))
