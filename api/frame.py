"""The frame around every page of the dashboard: its navigation, who is signed in, and errors inside it."""

from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from api import flash, pages
from api.deps import SESSION_COOKIE, open_runtime_of
from api.forms import form_token
from core.accounts import service as accounts
from core.accounts.models import Scope
from core.accounts.service import Actor
from core.errors import AuthenticationError, MethodNotAllowedError, PermissionDeniedError, TunewrightError
from core.ledger import service as ledger
from core.runtime import Runtime

NAVIGATION = (
    ("start", "/", "Home", "home"),
    ("new", "/new", "New fine-tune", "plus"),
    ("jobs", "/jobs", "Jobs", "list"),
    ("models", "/models", "Models", "box"),
    ("credits", "/credits", "Credits", "coin"),
    ("fleet", "/fleet", "Fleet", "chip"),
    ("fits", "/fits", "What fits?", "grid"),
    ("guide", "/guide", "Docs", "book"),
    ("settings", "/settings", "Settings", "gear"),
)
ADMINISTRATION = (("accounts", "/accounts", "Accounts", "people"), ("audit", "/audit", "Audit log", "list"))


def frame(runtime: Runtime, actor: Actor) -> dict[str, Any]:
    """What the frame shows of someone who is signed in."""
    with runtime.database.read() as session:
        account = accounts.get_account(session, actor)
        balance = ledger.balance(session, actor.organization_id)
    navigation = NAVIGATION + (ADMINISTRATION if actor.scope.includes(Scope.ADMIN) else ())
    return {"actor": actor, "account": account, "balance": balance, "navigation": navigation}


def token_of(request: Request) -> str:
    """What forms of this browser's session carry."""
    return form_token(request.cookies.get(SESSION_COOKIE, ""))


def page_behind(request: Request) -> str:
    """The page that a form stands on, with all that its address holds: each form posts to a place below its page."""
    first, _, rest = request.url.path.removeprefix("/").partition("/")
    page = f"/{first}/{rest.partition('/')[0]}" if first == "jobs" and rest else f"/{first}"
    return f"{page}?{request.url.query}" if request.url.query else page


async def problem_page(request: Request, error: TunewrightError) -> Response:
    """What happened and what to do; for someone signed in inside the frame, so that they can go on from there."""
    if request.headers.get("hx-request") or SESSION_COOKIE not in request.cookies:
        return pages.problem_page(request, error)
    known = await run_sync(_known_frame, request, error)
    if known is None:
        return pages.problem_page(request, error)
    is_form = request.method != "GET" or isinstance(error, MethodNotAllowedError)
    back = page_behind(request) if is_form else None
    values = {"csrf_token": token_of(request), "current": None, "back": back, **known}
    return pages.problem_page(request, error, "dashboard/problem.html", **values)


def _known_frame(request: Request, error: TunewrightError) -> dict[str, Any] | None:
    """What the frame shows: the pages alone where the database cannot say who this is; None for strangers."""
    without_account: dict[str, Any] = {"account": None, "navigation": NAVIGATION}
    if error.code == "database_unavailable":
        return without_account
    runtime = open_runtime_of(request)
    try:
        with runtime.database.read() as session:
            actor = accounts.authenticate_session(session, request.cookies[SESSION_COOKIE])
        return frame(runtime, actor)
    except (AuthenticationError, PermissionDeniedError):
        return None
    except SQLAlchemyError:
        return without_account


def shown_once(request: Request) -> dict[str, Any]:
    """What the form before has said, for the page to show: `flash`, and in it the `problem` where it was refused."""
    said = flash.read(request)
    problem = None
    if "problem" in said:
        problem = {
            "message": said["problem"],
            "code": said["problem_code"],
            "request_id": said["problem_request"],
        }
    return {"flash": {**said, "problem": problem}}
