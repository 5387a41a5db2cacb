"""What all pages of the dashboard share: who is signed in, the frame around the content, and errors as pages."""

from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from api import flash, pages
from api.deps import SESSION_COOKIE
from api.flash import see_other
from api.forms import sign_in_address
from api.frame import frame, page_behind, problem_page, shown_once, token_of
from core.accounts.service import Actor
from core.errors import (
    AuthenticationError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    TunewrightError,
)
from core.retention.files import file_kept_until
from core.retention.jobs import model_kept_until
from core.runtime import Runtime

__all__ = ["page_router", "see_other", "show"]


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
                return await _refused(request, error)
            except RequestValidationError as error:
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"][1:])
                return await _refused(request, InvalidRequestError(f"{name or 'The form'}: {first['msg']}."))

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
    token = token_of(request)
    values["file_kept_until"] = partial(file_kept_until, runtime.settings)
    values["model_kept_until"] = partial(model_kept_until, runtime.settings)
    if request.headers.get("hx-request") and parts and wanted in parts:
        part = pages.render(request, f"dashboard/{parts[wanted]}", status, csrf_token=token, actor=actor, **values)
        if address is not None:
            part.headers["hx-replace-url"] = address
        return part
    response = pages.render(
        request,
        f"dashboard/{template}",
        status,
        **{**frame(runtime, actor), **shown_once(request), "csrf_token": token, "current": current, **values},
    )
    flash.forget(request, response)
    return response


async def _refused(request: Request, error: TunewrightError) -> Response:
    """A form that is refused leads back to its page, which says why: nothing that was chosen there is lost."""
    is_form = request.method == "POST" and SESSION_COOKIE in request.cookies and "hx-request" not in request.headers
    is_nowhere = isinstance(error, NotFoundError) and not request.url.path.startswith("/new/")
    if not is_form or is_nowhere or isinstance(error, PermissionDeniedError):
        return await problem_page(request, error)
    return flash.carry_problem(request, page_behind(request), error)


def _to_sign_in(request: Request) -> Response:
    """Sign in first, and come back to the page that was asked for or whose part or form it was."""
    if "hx-request" in request.headers:
        shown = urlsplit(request.headers.get("hx-current-url", ""))
        wanted = f"{shown.path}?{shown.query}" if shown.query else shown.path or "/"
        return Response(status_code=401, headers={"hx-redirect": sign_in_address(wanted)})
    if request.method != "GET":
        return see_other(sign_in_address(page_behind(request)))
    query = f"?{request.url.query}" if request.url.query else ""
    return see_other(sign_in_address(request.url.path + query))
