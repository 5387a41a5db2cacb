"""HTML: the templates and what every one of them can use, the policy they are sent with, and the built assets."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Scope

from api import formatting
from core.errors import RateLimitError, ServiceUnavailableError, TunewrightError

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
FORM_POLICY = (  # where passwords are typed, nothing runs
    "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
THEME_COOKIE = "tunewright_theme"
STATIC = Path(__file__).parent / "static"
BUNDLE = ("app.js", "app.css")
NOT_BUILT = "The dashboard's scripts and styles are not built. Run `make assets`, then load this page again."

log = structlog.get_logger()


class Assets(StaticFiles):
    """Built files, named with their hash where pages ask for them, so that browsers may keep those for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles, with how long the answer keeps."""
        response = await super().get_response(path, scope)
        is_named = b"v=" in scope.get("query_string", b"")
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if is_named else "no-cache"
        return response


def mount_static(app: FastAPI) -> None:
    """Serve the built scripts and styles, compressed. The service starts without them: its API needs none."""
    if missing := [name for name in BUNDLE if not (STATIC / name).is_file()]:
        log.warning("dashboard_not_built", missing=missing, hint=NOT_BUILT)
    app.mount("/static", GZipMiddleware(Assets(directory=STATIC, check_dir=False)), name="static")


def require_bundle() -> None:
    """For pages that mean nothing without their styles. Raises ServiceUnavailableError."""
    if not all((STATIC / name).is_file() for name in BUNDLE):
        raise ServiceUnavailableError(NOT_BUILT, code="dashboard_not_built")


@cache
def _hash_of(name: str, _changed_ns: int) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def asset(name: str) -> str:
    """Where a built file is, with its hash, so that a new build is a new address."""
    path = STATIC / name
    if not path.is_file():
        return f"/static/{name}"
    return f"/static/{name}?v={_hash_of(name, path.stat().st_mtime_ns)}"


def _environment() -> Jinja2Templates:
    templates = Jinja2Templates(Path(__file__).parent / "templates")
    environment = templates.env
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.globals["asset"] = asset
    environment.filters.update(formatting.FILTERS)
    return templates


_templates = _environment()


def render(
    request: Request, template: str, status: int = 200, *, policy: str = PAGE_POLICY, **values: object
) -> Response:
    """A page or a part of one, under a policy that lets it load only what this service serves."""
    theme = request.cookies.get(THEME_COOKIE)
    context = {
        "theme": theme if theme in ("light", "dark") else None,
        "request_id": request.scope.get("request_id", ""),
        **values,
    }
    return _templates.TemplateResponse(
        request, template, context, status_code=status, headers={"content-security-policy": policy}
    )


def render_text(template: str, **values: object) -> str:
    """A plain text from a template, for a page to show."""
    return _templates.get_template(template).render(**values)


def problem_page(request: Request, error: TunewrightError, template: str = "problem.html", **values: Any) -> Response:
    """What happened, what to do, and the request's id to quote."""
    template = "dashboard/_problem.html" if request.headers.get("hx-request") else template
    response = render(request, template, error.status, error=error, **values)
    if isinstance(error, RateLimitError):
        response.headers["retry-after"] = str(error.retry_after_seconds)
    return response


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks, for something that is not of the API."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
