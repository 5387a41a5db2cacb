"""Credit codes: made by an administrator, redeemed by anyone, exactly as often as they allow."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from core.db.base import utc_now
from core.errors import ConflictError, InvalidRequestError, NotFoundError, TunewrightError
from core.ids import new_id
from core.ledger import queries, service
from core.ledger.models import CodeRedemption, CreditCode
from core.retries.service import CreateRequest, once

LONGEST_CODE = 64


@dataclass(frozen=True)
class Redemption:
    """What redeeming a code did."""

    id: str
    created_at: datetime
    code: str
    credits: int
    balance: service.Balance


def normalise(code: str) -> str:
    """Codes are compared trimmed and in upper case."""
    return code.strip().upper()


def create_code(
    session: Session,
    code: str,
    credits_each: int,
    *,
    expires_at: datetime | None = None,
    max_redemptions: int | None = None,
    per_account: int = 1,
) -> CreditCode:
    """A new code. Raises InvalidRequestError for an unusable one, ConflictError where the name is taken."""
    name = normalise(code)
    if not name or len(name) > LONGEST_CODE or not name.isprintable() or " " in name:
        raise InvalidRequestError(
            f"A code is 1 to {LONGEST_CODE} printable characters without spaces; got {code!r}.", param="code"
        )
    if credits_each < 1 or per_account < 1 or (max_redemptions is not None and max_redemptions < 1):
        raise InvalidRequestError("credits, max_redemptions and per_account are at least 1.", param="credits")
    if queries.lock_code(session, name) is not None:
        raise ConflictError(f"The code {name} exists already.", code="code_exists", param="code")
    row = CreditCode(
        id=new_id("code_"),
        code=name,
        credits=credits_each,
        expires_at=expires_at,
        max_redemptions=max_redemptions,
        per_account=per_account,
    )
    session.add(row)
    session.flush()
    return row


def disable_code(session: Session, code: str) -> CreditCode:
    """Make a code worthless from now on; what it gave stays. Raises NotFoundError. Disabling twice is no error."""
    row = queries.lock_code(session, normalise(code)[:LONGEST_CODE])
    if row is None:
        raise _unknown()
    row.disabled_at = row.disabled_at or utc_now()
    session.flush()
    return row


def redeem(session: Session, organization_id: str, code: str) -> Redemption:
    """Turn a code into credits. Raises NotFoundError, ConflictError or InvalidRequestError, saying why not."""
    row = queries.lock_code(session, normalise(code)[:LONGEST_CODE])
    if row is None or row.disabled_at is not None:
        raise _unknown()
    if row.expires_at is not None and row.expires_at <= utc_now():
        raise InvalidRequestError(
            f"The code {row.code} expired on {row.expires_at:%Y-%m-%d}.", code="code_expired", param="code"
        )
    mine = queries.count_redemptions(session, row.id, organization_id)
    if mine >= row.per_account:
        raise ConflictError(
            f"You have redeemed {row.code} already ({mine} of {row.per_account} times).",
            code="code_already_redeemed",
            param="code",
        )
    total = queries.count_redemptions(session, row.id)
    if row.max_redemptions is not None and total >= row.max_redemptions:
        raise _used_up(row.code, row.max_redemptions)
    transaction = service.grant(
        session,
        organization_id,
        row.credits,
        idempotency_key=f"redeem:{row.id}:{organization_id}:{mine + 1}",
        code_id=row.id,
    )
    use = CodeRedemption(
        id=new_id("redm_"),
        code_id=row.id,
        organization_id=organization_id,
        ordinal=total + 1,
        organization_ordinal=mine + 1,
        transaction_id=transaction.id,
    )
    session.add(use)
    session.flush()
    return _redemption(session, use)


def redeem_once(session: Session, organization_id: str, code: str, request: CreateRequest) -> Redemption:
    """As `redeem`; a retried redemption returns the first result."""
    use_id = once(session, request, lambda: redeem(session, organization_id, code).id)
    return _redemption(session, session.get_one(CodeRedemption, use_id))


def _unknown() -> NotFoundError:
    return NotFoundError("No such credit code. Check its spelling.", code="code_unknown", param="code")


def _redemption(session: Session, use: CodeRedemption) -> Redemption:
    code = session.get_one(CreditCode, use.code_id)
    return Redemption(use.id, use.created_at, code.code, code.credits, service.balance(session, use.organization_id))


def redeem_for_job(session: Session, organization_id: str, code: str) -> None:
    """As `redeem`, but a code this organization has redeemed before, whatever became of it since, is no error.

    The job then just runs on the balance.
    """
    try:
        redeem(session, organization_id, code)
    except TunewrightError:
        if not queries.has_redeemed(session, normalise(code), organization_id):
            raise


def _used_up(code: str, max_redemptions: int) -> ConflictError:
    if max_redemptions == 1:
        return ConflictError(
            f"The code {code} has been redeemed already; it works once.", code="code_already_redeemed", param="code"
        )
    return ConflictError(
        f"The code {code} has been redeemed all {max_redemptions} times it can be.", code="code_exhausted", param="code"
    )
