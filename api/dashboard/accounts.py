"""The accounts of this installation, for its administrators."""

from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response
from sqlalchemy.orm import Session

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from api.flash import carry, carry_problem
from api.forms import check_form
from api.frame import page_behind
from core.accounts import passwords, queries
from core.accounts import service as accounts
from core.accounts.limits import set_limits
from core.accounts.models import Organization
from core.accounts.service import sign_in_url
from core.errors import ConflictError, InvalidRequestError
from core.ledger import service as ledger
from core.runtime import Runtime

SHOWN_ACCOUNTS = 100
GIB = 1024**3
MOST_GIB, MOST_JOBS = 1024**2, 100_000
Own = Annotated[str, Form(max_length=20)]  # a limit of the organization's own; empty where the service's is in force

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


@router.post("/accounts/new", dependencies=_FORM)
def invite(
    request: Request,
    runtime: RuntimeDep,
    email: Annotated[str, Form(max_length=passwords.LONGEST_EMAIL)],
    name: Annotated[str, Form(max_length=passwords.LONGEST_NAME)],
) -> Response:
    """An account for someone, with the link that signs them in for the first time."""

    def make(session: Session) -> str:
        user = accounts.get_user(session, passwords.invite(session, email, name))
        return accounts.create_sign_in_link(session, user, runtime.settings.sign_in_link_seconds)

    try:
        token = runtime.database.run(make)
    except (InvalidRequestError, ConflictError) as error:
        return carry_problem(request, "/accounts", error, email=email, name=name)
    return _carry_link(request, runtime, token, "/accounts")


@router.get("/accounts/{user_id}/limits", dependencies=[Depends(authenticate_admin)])
def ask_for_limits(request: Request, runtime: RuntimeDep, actor: ActorDep, user_id: str) -> Response:
    """What the user's organization may have at once."""
    with runtime.database.read() as session:
        user = accounts.get_user(session, user_id)
        organization = session.get_one(Organization, user.organization_id)
    return show(
        request,
        runtime,
        actor,
        "account_limits.html",
        current="accounts",
        user=user,
        organization=organization,
        services=runtime.settings,
        gib=GIB,
        most_gib=MOST_GIB,
        most_jobs=MOST_JOBS,
    )


@router.post("/accounts/{user_id}/limits", dependencies=_FORM)
def change_limits(
    request: Request,
    runtime: RuntimeDep,
    user_id: str,
    running_jobs: Own = "",
    queued_jobs: Own = "",
    storage_gib: Own = "",
    upload_gib: Own = "",
) -> Response:
    """Limits of the organization's own; an empty field puts the service's back."""
    with runtime.database.read() as session:
        user = accounts.get_user(session, user_id)
    try:
        changes = {
            "running_jobs": _number(running_jobs, "running_jobs", MOST_JOBS, 1),
            "queued_jobs": _number(queued_jobs, "queued_jobs", MOST_JOBS, 1),
            "storage_bytes": _number(storage_gib, "storage_gib", MOST_GIB, GIB),
            "upload_bytes": _number(upload_gib, "upload_gib", MOST_GIB, GIB),
        }
    except InvalidRequestError as error:
        return carry_problem(request, f"/accounts/{user.id}/limits", error)
    name = runtime.database.run(lambda session: set_limits(session, user.organization_id, changes).name)
    return carry(request, page_behind(request), said=f"The limits of {name} are set.")


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
    return _carry_link(request, runtime, token, page_behind(request))


def _carry_link(request: Request, runtime: Runtime, token: str, page: str) -> Response:
    link = sign_in_url(runtime.settings.public_url or str(request.base_url), token)
    return carry(request, page, link=link, minutes=str(runtime.settings.sign_in_link_seconds // 60))


def _number(text: str, name: str, most: int, unit: int) -> int | None:
    """A field's number of `unit`; None where it is empty. Raises InvalidRequestError."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most or (unit == 1 and not value.is_integer()):
        kind = "a whole number" if unit == 1 else "a number"
        raise InvalidRequestError(f"{name} is {kind} from 0 to {most:,}, or empty; not {text!r}.", param=name)
    return int(value * unit)
