"""Credits: the balance, the transactions behind it, and codes."""

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import IdentifiedBody, RequestBody, ResponseBody, unix_seconds
from core.ledger.codes import LONGEST_CODE, Redemption
from core.ledger.models import LedgerTransaction, TransactionKind
from core.ledger.service import Balance


class CreditsObject(ResponseBody):
    """The organization's balance: the sum of its transactions."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "credits", "available": 9690, "held": 310}]})

    object: Literal["credits"] = "credits"
    available: int = Field(description="What can be spent.")
    held: int = Field(description="What unfinished jobs may cost at most.")


class TransactionObject(IdentifiedBody):
    """One movement of credits."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "txn_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "object": "credit.transaction",
                    "created_at": 1795219200,
                    "kind": "hold",
                    "amount": 310,
                    "fine_tuning_job_id": "ftjob-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                }
            ]
        }
    )

    object: Literal["credit.transaction"] = "credit.transaction"
    created_at: int
    kind: TransactionKind = Field(
        description="`grant`: credits came in. `hold`: a job's quote was set aside. `capture`: a job was charged from "
        "its hold. `release`: the rest of a hold came back. `refund`: a charge was given back, or a part of it."
    )
    amount: int = Field(description="Credits moved; always positive.")
    fine_tuning_job_id: str | None


class RedemptionCreate(RequestBody):
    """A code to redeem."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"code": "SANTIAGO"}]})

    code: str = Field(min_length=1, max_length=LONGEST_CODE, description="In any case, spaces around it ignored.")


class RedemptionObject(ResponseBody):
    """A redeemed code."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "redm_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "object": "credit.redemption",
                    "created_at": 1795219200,
                    "code": "SANTIAGO",
                    "credits": 10000,
                    "balance": {"object": "credits", "available": 10000, "held": 0},
                }
            ]
        }
    )

    id: str
    object: Literal["credit.redemption"] = "credit.redemption"
    created_at: int
    code: str
    credits: int = Field(description="What the code was worth.")
    balance: CreditsObject = Field(description="The balance now.")


def show_balance(balance: Balance) -> CreditsObject:
    """A balance as the wire shows it."""
    return CreditsObject(available=balance.available_credits, held=balance.held_credits)


def show_transaction(transaction: LedgerTransaction) -> TransactionObject:
    """A transaction as the wire shows it."""
    return TransactionObject(
        id=transaction.id,
        created_at=unix_seconds(transaction.created_at),
        kind=TransactionKind(transaction.kind),
        amount=transaction.amount_credits,
        fine_tuning_job_id=transaction.job_id,
    )


def show_redemption(redemption: Redemption) -> RedemptionObject:
    """A redemption as the wire shows it."""
    return RedemptionObject(
        id=redemption.id,
        created_at=unix_seconds(redemption.created_at),
        code=redemption.code,
        credits=redemption.credits,
        balance=show_balance(redemption.balance),
    )
