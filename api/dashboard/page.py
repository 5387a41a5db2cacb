"""What all pages of the dashboard share: who is signed in, the frame around the content, and errors as pages."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from api import pages
from api.deps import SESSION_COOKIE
from api.forms import form_token
from core.accounts import service as accounts
from core.accounts.models import Scope
from core.accounts.service import Actor
from core.errors import AuthenticationError, InvalidRequestError, TunewrightError
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
ADMINISTRATION = (("accounts", "/accounts", "Accounts", "people"),)


class PageRoute(APIRoute):
    """A route whose expected errors are pages for people, and whose strangers are sent to sign in."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler with its errors shown."""
        handle = super().get_route_handler()

        async def handle_and_show(request: Request) -> Response:
            try:
                return await handle(request)
            except AuthenticationError:
                return _to_sign_in(request)
            except TunewrightError as error:
                return pages.problem_page(request, error)
            except RequestValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"][1:])
                return pages.problem_page(request, InvalidRequestError(f"{name or 'The form'}: {first['msg']}."))

        return handle_and_show


def page_router() -> APIRouter:
    """A router for pages: not in the API's document, and only with the assets that they need."""
    return APIRouter(route_class=PageRoute, include_in_schema=False, dependencies=[Depends(pages.require_bundle)])


def show(
    request: Request,
    runtime: Runtime,
    actor: Actor,
    template: str,
    *,
    current: str,
    parts: Mapping[str, str] | None = None,
    status: int = 200,
    address: str | None = None,
    **values: Any,
) -> Response:
    """A page of the dashboard; or of its `parts`, by element id, the one that htmx asks for.

    `address`: where a reader who reloads finds what a part shows.
    """
    wanted = request.headers.get("hx-target", "")
    token = form_token(request.cookies.get(SESSION_COOKIE, ""))
    if request.headers.get("hx-request") and parts and wanted in parts:
        part = pages.render(request, f"dashboard/{parts[wanted]}", status, csrf_token=token, actor=actor, **values)
        if address is not None:
            part.headers["hx-replace-url"] = address
        return part
    with runtime.database.read() as session:
        account = accounts.get_account(session, actor)
        balance = ledger.balance(session, actor.organization_id)
    return pages.render(
        request,
        f"dashboard/{template}",
        status,
        **{
            "csrf_token": token,
            "actor": actor,
            "account": account,
            "balance": balance,
            "current": current,
            "navigation": NAVIGATION + (ADMINISTRATION if actor.scope.includes(Scope.ADMIN) else ()),
            **values,
        },
    )


def see_other(path: str) -> Response:
    """On to another page behind a form."""
    return RedirectResponse(path, status_code=303)


def _to_sign_in(request: Request) -> Response:
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"hx-redirect": "/sign-in"})
    return see_other("/sign-in")
