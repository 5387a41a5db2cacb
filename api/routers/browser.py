"""What a browser needs besides the API: signing in by link or password, signing up, and the API reference."""

from importlib import resources
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from api import flash, forms, pages
from api.deps import SESSION_COOKIE, AddressDep, RuntimeDep
from core.accounts import passwords
from core.accounts import service as accounts
from core.errors import PermissionDeniedError, TunewrightError

router = APIRouter(include_in_schema=False)

FormField = Annotated[str, Form(max_length=400)]

# Swagger UI sets style attributes and inlines its icons; scripts and connections stay our own.
_REFERENCE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
_REFERENCE_PAGE = """<!doctype html>
<html lang="en"{theme}>
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tunewright API</title>
<link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/docs/swagger/swagger-ui.css">
<link rel="stylesheet" href="/docs/assets/reference.css">
</head>
<body>
<nav class="back" aria-label="Back"><a href="/guide">← Docs</a><a href="/">Dashboard</a></nav>
<main id="reference"></main>
<script src="/docs/swagger/swagger-ui-bundle.js"></script>
<script src="/docs/assets/reference.js"></script>
</body>
</html>
"""

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20"><path d="M4 16V9M10 16V4M16 16v-5" fill="none" '
    'stroke="#6366f1" stroke-width="3" stroke-linecap="round"/></svg>'
)


def mount_assets(app: FastAPI) -> None:
    """Serve Swagger UI from its installed package and our few lines that start it. Nothing comes from elsewhere."""
    swagger = Path(str(resources.files("fastapi_swagger.resources")))
    assets = Path(str(resources.files("api"))) / "assets"
    app.mount("/docs/swagger", StaticFiles(directory=swagger), name="swagger")
    app.mount("/docs/assets", StaticFiles(directory=assets), name="assets")


@router.get("/icon.svg")
def show_icon() -> Response:
    """The icon of every page."""
    return Response(_ICON, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


@router.get("/docs")
def show_reference(request: Request) -> HTMLResponse:
    """The API reference, which can send requests with the browser's session."""
    chosen = request.cookies.get(pages.THEME_COOKIE)
    theme = f' data-theme="{chosen}"' if chosen in ("light", "dark") else ""
    page = _REFERENCE_PAGE.replace("{theme}", theme)
    return HTMLResponse(page, headers={"content-security-policy": _REFERENCE_POLICY})


@router.get("/sign-in")
def show_sign_in(
    request: Request,
    runtime: RuntimeDep,
    address: AddressDep,  # noqa: ARG001 (it is counted)
    token: Annotated[str | None, Query(max_length=200)] = None,
    wanted: Annotated[str, Query(alias="next")] = "",
) -> Response:
    """Ask for a password; with a one-time link's token, for a click: whoever fetches a link to look at it, as mail
    scanners and chat previews do, must not spend it. `next` is the page to go on to, whichever way is taken."""
    if token is None:
        said = flash.read(request)
        response = forms.show(request, runtime, "sign_in.html", said=said)
        if not said:
            forms.keep_return(request, runtime, response, wanted)
        flash.forget(request, response)
        return response
    with runtime.database.read() as session:
        accounts.check_link(session, token)
    return forms.show(request, runtime, "sign_in_link.html", token=token)


@router.post("/sign-in/link", dependencies=[Depends(forms.check_form)])
def sign_in_with_link(
    request: Request,
    runtime: RuntimeDep,
    address: AddressDep,  # noqa: ARG001 (it is counted)
    token: Annotated[str, Form(max_length=200)],
) -> Response:
    """Spend a one-time link and sign the browser in."""
    seconds = runtime.settings.session_seconds
    try:
        session_token = runtime.database.run(lambda session: accounts.sign_in_with_link(session, token, seconds))
    except PermissionDeniedError as error:
        return flash.carry_problem(request, "/sign-in", error)
    return forms.signed_in(request, runtime, session_token)


@router.post("/sign-in", dependencies=[Depends(forms.check_form)])
def sign_in(
    request: Request, runtime: RuntimeDep, address: AddressDep, email: FormField, password: FormField
) -> Response:
    """Sign in with a password."""
    try:
        session_token = passwords.sign_in(runtime, email, password, address)
    except TunewrightError as error:
        return flash.carry_problem(request, "/sign-in", error, email=email)
    return forms.signed_in(request, runtime, session_token)


@router.get("/sign-up")
def show_sign_up(request: Request, runtime: RuntimeDep) -> Response:
    """Ask for what an account needs."""
    response = forms.show(request, runtime, "sign_up.html", said=flash.read(request))
    flash.forget(request, response)
    return response


@router.post("/sign-up", dependencies=[Depends(forms.check_form)])
def sign_up(
    request: Request,
    runtime: RuntimeDep,
    address: AddressDep,
    email: FormField,
    password: FormField,
    name: FormField,
) -> Response:
    """Make an account, where that is open, and sign in."""
    registration = passwords.Registration(email, password, name)
    try:
        session_token = passwords.sign_up(runtime, registration, address)
    except TunewrightError as error:
        return flash.carry_problem(request, "/sign-up", error, email=email, name=name)
    return forms.signed_in(request, runtime, session_token)


@router.post("/sign-out", dependencies=[Depends(forms.check_form)])
def sign_out(request: Request, runtime: RuntimeDep) -> Response:
    """End the browser's session."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is not None:
        runtime.database.run(lambda session: accounts.sign_out(session, token))
    response = RedirectResponse("/sign-in", status_code=303)
    response.delete_cookie(SESSION_COOKIE, path="/")
    return response
