"""The accounts of this installation, for its administrators."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from api.forms import check_form
from core.accounts import queries
from core.accounts import service as accounts
from core.accounts.service import Actor, sign_in_url
from core.errors import TunewrightError
from core.ledger import service as ledger
from core.runtime import Runtime

SHOWN_ACCOUNTS = 100

router = page_router()
_FORM = [Depends(check_form), Depends(authenticate_admin)]


@router.get("/accounts", dependencies=[Depends(authenticate_admin)])
def show_accounts(
    request: Request, runtime: RuntimeDep, actor: ActorDep, q: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """Who has an account, and what their organizations have."""
    return _show(request, runtime, actor, q=q)


@router.post("/accounts/{user_id}/disable", dependencies=_FORM)
def disable(request: Request, runtime: RuntimeDep, actor: ActorDep, user_id: str) -> Response:
    """Let nobody sign in as this user, nor use their keys."""
    try:
        user = runtime.database.run(lambda session: accounts.disable_user(session, user_id, by=actor.user_id))
    except TunewrightError as error:
        return _show(request, runtime, actor, problem=error, status=error.status)
    return _show(request, runtime, actor, said=f"{user.name} is disabled and signed out. Enable undoes it.")


@router.post("/accounts/{user_id}/enable", dependencies=_FORM)
def enable(request: Request, runtime: RuntimeDep, actor: ActorDep, user_id: str) -> Response:
    """Let them in again."""
    user = runtime.database.run(lambda session: accounts.enable_user(session, user_id))
    return _show(request, runtime, actor, said=f"{user.name} can sign in again.")


@router.post("/accounts/{user_id}/link", dependencies=_FORM)
def make_link(request: Request, runtime: RuntimeDep, actor: ActorDep, user_id: str) -> Response:
    """A one-time sign-in link for someone who has lost their password or locked themselves out."""
    seconds = runtime.settings.sign_in_link_seconds
    token = runtime.database.run(
        lambda session: accounts.create_sign_in_link(session, accounts.get_user(session, user_id), seconds)
    )
    base = runtime.settings.public_url or str(request.base_url)
    return _show(request, runtime, actor, link=sign_in_url(base, token), minutes=seconds // 60)


def _show(
    request: Request, runtime: Runtime, actor: Actor, *, q: str = "", status: int = 200, **values: Any
) -> Response:
    with runtime.database.read() as session:
        rows = [
            (user, organization, ledger.balance(session, organization.id))
            for user, organization in queries.find_users(session, q.strip(), SHOWN_ACCOUNTS)
        ]
    values |= {"rows": rows, "q": q, "most": SHOWN_ACCOUNTS, "sign_up_open": runtime.settings.sign_up_open}
    return show(request, runtime, actor, "accounts.html", current="accounts", status=status, **values)
