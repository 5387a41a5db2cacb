"""What a browser needs besides the API: signing in by link, and the API reference."""

from importlib import resources
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from api.deps import SESSION_COOKIE, RuntimeDep
from core.accounts import service as accounts

router = APIRouter(include_in_schema=False)

# Swagger UI sets style attributes and inlines its icons; scripts and connections stay our own.
_REFERENCE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_REFERENCE_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tunewright API</title>
<link rel="icon" href="/docs/swagger/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger/swagger-ui.css">
</head>
<body>
<main id="reference"></main>
<script src="/docs/swagger/swagger-ui-bundle.js"></script>
<script src="/docs/assets/reference.js"></script>
</body>
</html>
"""


def mount_assets(app: FastAPI) -> None:
    """Serve Swagger UI from its installed package and our few lines that start it. Nothing comes from elsewhere."""
    swagger = Path(str(resources.files("fastapi_swagger.resources")))
    assets = Path(str(resources.files("api"))) / "assets"
    app.mount("/docs/swagger", StaticFiles(directory=swagger), name="swagger")
    app.mount("/docs/assets", StaticFiles(directory=assets), name="assets")


@router.get("/")
def show_home() -> RedirectResponse:
    """The API reference."""
    return RedirectResponse("/docs", status_code=302)


@router.get("/docs")
def show_reference() -> HTMLResponse:
    """The API reference, which can send requests with the browser's session."""
    return HTMLResponse(_REFERENCE_PAGE, headers={"content-security-policy": _REFERENCE_POLICY})


@router.get("/sign-in")
def sign_in(request: Request, runtime: RuntimeDep, token: Annotated[str, Query(max_length=200)]) -> RedirectResponse:
    """Spend a one-time link and sign the browser in."""
    seconds = runtime.settings.session_seconds
    session_token = runtime.database.run(lambda session: accounts.sign_in_with_link(session, token, seconds))
    response = RedirectResponse("/", status_code=303)
    public_url = runtime.settings.public_url or ""
    response.set_cookie(
        SESSION_COOKIE,
        session_token,
        max_age=seconds,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https" or public_url.startswith("https:"),
        path="/",
    )
    return response
