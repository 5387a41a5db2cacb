"""Settings: who one is, API keys, and for administrators credit codes."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, Form, Request, Response

from api.dashboard.page import page_router, see_other, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from api.forms import check_form
from core.accounts import service as accounts
from core.accounts.limits import limits_of
from core.accounts.models import Scope
from core.accounts.service import Actor
from core.errors import InvalidRequestError, TunewrightError
from core.ledger import codes
from core.runtime import Runtime

SHOWN_CODES = 50

router = page_router()


@router.get("/settings")
def show_settings(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Everything there is to set."""
    return _show(request, runtime, actor)


@router.post("/settings/keys", dependencies=[Depends(check_form)])
def create_key(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    name: Annotated[str, Form(max_length=200)],
    scope: Annotated[Scope, Form()] = Scope.WRITE,
) -> Response:
    """Make a key and show its secret, this once."""
    try:
        if not name.strip():
            raise InvalidRequestError("A key needs a name, to tell it from the others.", param="name")
        new = runtime.database.run(
            lambda session: accounts.create_api_key_for(session, actor, name.strip(), scope=scope)
        )
    except TunewrightError as error:
        return _show(request, runtime, actor, key_problem=error, status=error.status)
    return _show(request, runtime, actor, new_key=new)


@router.post("/settings/keys/{key_id}/revoke", dependencies=[Depends(check_form)])
def revoke_key(runtime: RuntimeDep, actor: ActorDep, key_id: str) -> Response:
    """Make a key unusable."""
    runtime.database.run(lambda session: accounts.revoke_api_key(session, actor.organization_id, key_id))
    return see_other("/settings#keys")


@router.post("/settings/codes", dependencies=[Depends(check_form), Depends(authenticate_admin)])
def create_code(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    code: Annotated[str, Form(max_length=200)],
    credits_each: Annotated[str, Form(alias="credits", max_length=20)],
    max_redemptions: Annotated[str, Form(max_length=20)] = "",
    days: Annotated[str, Form(max_length=6)] = "",
) -> Response:
    """Make a code."""
    try:
        amount, most = _number(credits_each, "Credits"), _number(max_redemptions, "Uses") if max_redemptions else None
        expires_at = datetime.now(UTC) + timedelta(days=_number(days, "Days")) if days else None
        runtime.database.run(
            lambda session: codes.create_code(session, code, amount, expires_at=expires_at, max_redemptions=most)
        )
    except TunewrightError as error:
        return _show(request, runtime, actor, code_problem=error, status=error.status)
    return see_other("/settings#codes")


@router.post("/settings/codes/{code}/disable", dependencies=[Depends(check_form), Depends(authenticate_admin)])
def disable_code(runtime: RuntimeDep, code: str) -> Response:
    """Make a code worthless from now on."""
    runtime.database.run(lambda session: codes.disable_code(session, code))
    return see_other("/settings#codes")


def _number(text: str, name: str) -> int:
    digits = text.replace(",", "").strip()
    if not digits.isdecimal() or len(digits) > 15:
        raise InvalidRequestError(f"{name} must be a whole number; got {text!r}.")
    return int(digits)


def _show(request: Request, runtime: Runtime, actor: Actor, *, status: int = 200, **values: Any) -> Response:
    with runtime.database.read() as session:
        keys = accounts.list_api_keys(session, actor.organization_id)
        limits = limits_of(session, runtime.settings, actor.organization_id)
        uses = codes.list_codes(session, limit=SHOWN_CODES).rows if actor.scope.includes(Scope.ADMIN) else None
    return show(
        request,
        runtime,
        actor,
        "settings.html",
        current="settings",
        status=status,
        keys=[key for key in keys if key.revoked_at is None],
        limits=limits,
        uses=uses,
        scopes=[scope for scope in Scope if actor.scope.includes(scope)],
        **values,
    )
