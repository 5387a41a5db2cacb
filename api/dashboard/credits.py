"""Credits: the balance, a code, and every movement with the balance behind it."""

from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep, identify
from api.flash import carry, carry_problem
from api.forms import check_form
from core.errors import TunewrightError
from core.ledger import codes
from core.ledger import service as ledger

PAGE = 30

router = page_router()


@router.get("/credits")
def show_credits(
    request: Request, runtime: RuntimeDep, actor: ActorDep, after: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """The balance and a page of movements."""
    with runtime.database.read() as session:
        page = ledger.statement(session, actor.organization_id, after=after, limit=PAGE)
    older = page.rows[-1].transaction.id if page.has_more else None
    return show(
        request,
        runtime,
        actor,
        "credits.html",
        current="credits",
        lines=page.rows,
        older=older,
        is_first=after is None,
    )


@router.post("/credits", dependencies=[Depends(check_form)])
def redeem(
    request: Request, runtime: RuntimeDep, actor: ActorDep, code: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Turn a code into credits."""
    try:
        redeemed = codes.redeem_once(runtime, actor, code, identify(request, runtime, actor, code, None))
    except TunewrightError as error:
        return carry_problem(request, "/credits", error, code=code)
    return carry(request, "/credits", credits=str(redeemed.credits), redeemed=redeemed.code)
