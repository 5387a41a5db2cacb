"""Credit codes, as an administrator sees them."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas.base import LATEST_SECONDS, IdentifiedBody, RequestBody, unix_seconds, unix_seconds_or_none
from core.ledger.codes import LONGEST_CODE, MOST_CREDITS, MOST_REDEMPTIONS, CodeUse

_EXAMPLE: JsonDict = {
    "id": "code_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
    "object": "credit.code",
    "created_at": 1795219200,
    "code": "SANTIAGO",
    "credits": 10000,
    "expires_at": None,
    "max_redemptions": 100,
    "per_account": 1,
    "redemptions": 3,
    "disabled_at": None,
}


class CodeCreate(RequestBody):
    """A code to make."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"code": "SANTIAGO", "credits": 10000, "max_redemptions": 100}]}
    )

    code: str = Field(min_length=1, max_length=LONGEST_CODE, description="As people type it; case does not matter.")
    credits: int = Field(ge=1, le=MOST_CREDITS, description="What each redemption is worth.")
    expires_at: Annotated[int | None, Field(ge=0, le=LATEST_SECONDS)] = Field(
        None, description="Unix seconds from which it no longer works; null: never."
    )
    max_redemptions: Annotated[int | None, Field(ge=1, le=MOST_REDEMPTIONS)] = Field(
        None, description="Over all accounts; null: any number."
    )
    per_account: int = Field(1, ge=1, le=MOST_REDEMPTIONS, description="Redemptions of one account.")


class CodeObject(IdentifiedBody):
    """A code."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    object: Literal["credit.code"] = "credit.code"
    created_at: int
    code: str
    credits: int
    expires_at: int | None
    max_redemptions: int | None
    per_account: int
    redemptions: int = Field(description="How often it was redeemed, by all accounts together.")
    disabled_at: int | None


def show_code(use: CodeUse) -> CodeObject:
    """A code as the wire shows it."""
    code = use.code
    return CodeObject(
        id=code.id,
        created_at=unix_seconds(code.created_at),
        code=code.code,
        credits=code.credits,
        expires_at=unix_seconds_or_none(code.expires_at),
        max_redemptions=code.max_redemptions,
        per_account=code.per_account,
        redemptions=use.redemptions,
        disabled_at=unix_seconds_or_none(code.disabled_at),
    )
