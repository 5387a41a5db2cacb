"""Credits: balance, transactions, codes."""

from fastapi import APIRouter

from api.deps import ActorDep, CreateRequestDep, PageDep, RuntimeDep
from api.schemas.credits import (
    CreditsObject,
    RedemptionCreate,
    RedemptionObject,
    TransactionObject,
    show_balance,
    show_redemption,
    show_transaction,
)
from api.schemas.errors import CREATE, SIGNED_IN, errors
from api.schemas.lists import ListObject, list_of
from core.ledger import codes
from core.ledger import service as ledger

router = APIRouter(prefix="/v1/credits", tags=["Credits"])


@router.get("", summary="Retrieve the balance", responses=errors(*SIGNED_IN))
def retrieve_credits(runtime: RuntimeDep, actor: ActorDep) -> CreditsObject:
    """What the organization can spend, and what its unfinished jobs hold."""
    with runtime.database.read() as session:
        return show_balance(ledger.balance(session, actor.organization_id))


@router.get("/transactions", summary="List transactions", responses=errors(*SIGNED_IN))
def list_credit_transactions(runtime: RuntimeDep, actor: ActorDep, page: PageDep) -> ListObject[TransactionObject]:
    """Every movement of the organization's credits, newest first."""
    with runtime.database.read() as session:
        found = ledger.list_transactions(session, actor.organization_id, after=page.after, limit=page.limit)
    return list_of(found, show_transaction)


@router.post(
    "/redemptions",
    summary="Redeem a code",
    responses=errors(*CREATE, "code_unknown", "code_expired", "code_already_redeemed", "code_exhausted"),
)
def create_credit_redemption(
    runtime: RuntimeDep, actor: ActorDep, body: RedemptionCreate, create_request: CreateRequestDep
) -> RedemptionObject:
    """Turn a code into credits. A retried request redeems once. Guessing is slowed per account and per address."""
    return show_redemption(codes.redeem_once(runtime, actor, body.code, create_request))
