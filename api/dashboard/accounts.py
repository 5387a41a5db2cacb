"""The accounts of this installation, for its administrators."""

from typing import Annotated

from fastapi import Depends, Query, Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from api.flash import carry
from api.forms import check_form
from api.frame import page_behind
from core.accounts import queries
from core.accounts import service as accounts
from core.accounts.service import sign_in_url
from core.ledger import service as ledger

SHOWN_ACCOUNTS = 100

router = page_router()
_FORM = [Depends(check_form), Depends(authenticate_admin)]


@router.get("/accounts", dependencies=[Depends(authenticate_admin)])
def show_accounts(
    request: Request, runtime: RuntimeDep, actor: ActorDep, q: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """Who has an account, and what their organizations have."""
    with runtime.database.read() as session:
        rows = [
            (user, organization, ledger.balance(session, organization.id))
            for user, organization in queries.find_users(session, q.strip(), SHOWN_ACCOUNTS)
        ]
    return show(
        request,
        runtime,
        actor,
        "accounts.html",
        current="accounts",
        rows=rows,
        q=q,
        most=SHOWN_ACCOUNTS,
        sign_up_open=runtime.settings.sign_up_open,
    )


@router.get("/accounts/{user_id}/disable", dependencies=[Depends(authenticate_admin)])
def ask_to_disable(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    user_id: str,
    q: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """What disabling an account means, before it is done."""
    with runtime.database.read() as session:
        user = accounts.get_user(session, user_id)
    return show(request, runtime, actor, "disable_account.html", current="accounts", user=user, q=q)


@router.post("/accounts/{user_id}/disable", dependencies=_FORM)
def disable(request: Request, runtime: RuntimeDep, actor: ActorDep, user_id: str) -> Response:
    """Let nobody sign in as this user, nor use their keys."""
    user = runtime.database.run(lambda session: accounts.disable_user(session, user_id, by=actor.user_id))
    return carry(request, page_behind(request), said=f"{user.name} is disabled and signed out. Enable undoes it.")


@router.post("/accounts/{user_id}/enable", dependencies=_FORM)
def enable(request: Request, runtime: RuntimeDep, user_id: str) -> Response:
    """Let them in again."""
    user = runtime.database.run(lambda session: accounts.enable_user(session, user_id))
    return carry(request, page_behind(request), said=f"{user.name} can sign in again.")


@router.post("/accounts/{user_id}/link", dependencies=_FORM)
def make_link(request: Request, runtime: RuntimeDep, user_id: str) -> Response:
    """A one-time sign-in link for someone who has lost their password or locked themselves out."""
    seconds = runtime.settings.sign_in_link_seconds
    token = runtime.database.run(
        lambda session: accounts.create_sign_in_link(session, accounts.get_user(session, user_id), seconds)
    )
    base = runtime.settings.public_url or str(request.base_url)
    return carry(request, page_behind(request), link=sign_in_url(base, token), minutes=str(seconds // 60))
