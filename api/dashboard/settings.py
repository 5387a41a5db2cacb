"""Settings: who one is, API keys, and for administrators credit codes."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response
from pydantic import SecretStr

from api.dashboard.page import page_router, see_other, show
from api.deps import SESSION_COOKIE, ActorDep, RuntimeDep, authenticate_admin
from api.flash import carry, carry_problem
from api.forms import check_form
from core.accounts import hub_tokens, passwords
from core.accounts import service as accounts
from core.accounts.limits import limits_of
from core.accounts.models import HubToken, Scope
from core.errors import InvalidRequestError, WrongPasswordError
from core.ledger import codes

SHOWN_CODES = 50
LONGEST_DAYS = 36_500

router = page_router()


@router.get("/settings")
def show_settings(
    request: Request, runtime: RuntimeDep, actor: ActorDep, changed: Annotated[str, Query(max_length=20)] = ""
) -> Response:
    """Everything there is to set."""
    with runtime.database.read() as session:
        keys = accounts.list_api_keys(session, actor.organization_id)
        limits = limits_of(session, runtime.settings, actor.organization_id)
        hub_token = session.get(HubToken, actor.organization_id)
        uses = codes.list_codes(session, limit=SHOWN_CODES).rows if actor.scope.includes(Scope.ADMIN) else None
    return show(
        request,
        runtime,
        actor,
        "settings.html",
        current="settings",
        keys=[key for key in keys if key.revoked_at is None],
        limits=limits,
        hub_token=hub_token,
        uses=uses,
        scopes=[scope for scope in Scope if actor.scope.includes(scope)],
        changed=changed,
    )


@router.post("/settings/keys", dependencies=[Depends(check_form)])
def create_key(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    name: Annotated[str, Form(max_length=200)],
    scope: Annotated[Scope, Form()] = Scope.WRITE,
    days: Annotated[str, Form(max_length=6)] = "",
) -> Response:
    """Make a key; the page shows its secret, this once."""
    if not name.strip():
        raise InvalidRequestError("A key needs a name, to tell it from the others.", param="name")
    expires_at = _in_days(days)
    new = runtime.database.run(
        lambda session: accounts.create_api_key_for(session, actor, name.strip(), scope=scope, expires_at=expires_at)
    )
    return carry(request, "/settings#keys", new_key=new.secret, key_name=new.key.name)


@router.get("/settings/keys/{key_id}/revoke")
def ask_to_revoke(request: Request, runtime: RuntimeDep, actor: ActorDep, key_id: str) -> Response:
    """What revoking a key means, before it is done."""
    with runtime.database.read() as session:
        key = accounts.get_api_key(session, actor.organization_id, key_id)
    return show(request, runtime, actor, "revoke_key.html", current="settings", key=key)


@router.post("/settings/keys/{key_id}/revoke", dependencies=[Depends(check_form)])
def revoke_key(runtime: RuntimeDep, actor: ActorDep, key_id: str) -> Response:
    """Make a key unusable."""
    runtime.database.run(lambda session: accounts.revoke_api_key(session, actor.organization_id, key_id))
    return see_other("/settings#keys")


@router.post("/settings/hub-token", dependencies=[Depends(check_form)])
def set_hub_token(
    request: Request, runtime: RuntimeDep, actor: ActorDep, token: Annotated[str, Form(max_length=500)]
) -> Response:
    """Keep a token for the model hub; no page shows it again."""
    kept = hub_tokens.set_token(runtime, actor.organization_id, SecretStr(token))
    whose = f"it belongs to {kept.hub_account} there" if kept.hub_account else "the hub did not say whose it is"
    return carry(request, "/settings#hub-token", hub_token=f"The token …{kept.hint} is kept: {whose}.")


@router.get("/settings/hub-token/remove")
def ask_to_remove_hub_token(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """What removing the hub token means, before it is done."""
    with runtime.database.read() as session:
        kept = hub_tokens.get_token(session, actor.organization_id)
    return show(request, runtime, actor, "remove_hub_token.html", current="settings", kept=kept)


@router.post("/settings/hub-token/remove", dependencies=[Depends(check_form)])
def remove_hub_token(runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Forget the hub token."""
    runtime.database.run(lambda session: hub_tokens.remove_token(session, actor.organization_id))
    return see_other("/settings#hub-token")


@router.post("/settings/password", dependencies=[Depends(check_form)])
def change_password(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    new: Annotated[str, Form(max_length=400)],
    current: Annotated[str, Form(max_length=400)] = "",
) -> Response:
    """Another password; other browsers are signed out."""
    session_token = request.cookies.get(SESSION_COOKIE, "")
    try:
        passwords.change_password(runtime, actor.user_id, current, new, session_token, actor.address)
    except WrongPasswordError as error:  # who sent this stays signed in
        return carry_problem(request, "/settings", error)
    return see_other("/settings?changed=password#sign-in")


@router.post("/settings/sign-out-everywhere", dependencies=[Depends(check_form)])
def sign_out_everywhere(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """End the sessions of all other browsers."""
    token = request.cookies.get(SESSION_COOKIE, "")
    runtime.database.run(lambda session: accounts.sign_out_everywhere(session, actor.user_id, but=token))
    return see_other("/settings?changed=sessions#sign-in")


@router.post("/settings/codes", dependencies=[Depends(check_form), Depends(authenticate_admin)])
def create_code(
    runtime: RuntimeDep,
    code: Annotated[str, Form(max_length=200)],
    credits_each: Annotated[str, Form(alias="credits", max_length=20)],
    max_redemptions: Annotated[str, Form(max_length=20)] = "",
    days: Annotated[str, Form(max_length=6)] = "",
) -> Response:
    """Make a code."""
    amount, most = _number(credits_each, "Credits"), _number(max_redemptions, "Uses") if max_redemptions else None
    expires_at = _in_days(days)
    runtime.database.run(
        lambda session: codes.create_code(session, code, amount, expires_at=expires_at, max_redemptions=most)
    )
    return see_other("/settings#codes")


@router.get("/settings/codes/{code}/disable", dependencies=[Depends(authenticate_admin)])
def ask_to_disable_code(request: Request, runtime: RuntimeDep, actor: ActorDep, code: str) -> Response:
    """What disabling a code means, before it is done."""
    with runtime.database.read() as session:
        use = codes.get_code(session, code)
    return show(request, runtime, actor, "disable_code.html", current="settings", use=use)


@router.post("/settings/codes/{code}/disable", dependencies=[Depends(check_form), Depends(authenticate_admin)])
def disable_code(runtime: RuntimeDep, code: str) -> Response:
    """Make a code worthless from now on."""
    runtime.database.run(lambda session: codes.disable_code(session, code))
    return see_other("/settings#codes")


@router.post("/settings/codes/{code}/enable", dependencies=[Depends(check_form), Depends(authenticate_admin)])
def enable_code(runtime: RuntimeDep, code: str) -> Response:
    """Let a disabled code work again."""
    runtime.database.run(lambda session: codes.enable_code(session, code))
    return see_other("/settings#codes")


def _in_days(days: str) -> datetime | None:
    return datetime.now(UTC) + timedelta(days=_number(days, "Days", LONGEST_DAYS)) if days.strip() else None


def _number(text: str, name: str, most: int = 10**15) -> int:
    digits = text.replace(",", "").strip()
    if not digits.isdecimal() or len(digits) > len(str(most)) or int(digits) > most:
        raise InvalidRequestError(f"{name} must be a whole number up to {most:,}; got {text!r}.")
    return int(digits)
