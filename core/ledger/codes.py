"""Credit codes: made by an administrator, redeemed by anyone, exactly as often as they allow."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from core.accounts.service import Actor
from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.db.upsert import insert_or_ignore
from core.errors import ConflictError, InvalidRequestError, TunewrightError, UnknownCodeError
from core.idempotency.service import CreateRequest, once
from core.ids import new_id
from core.ledger import queries, service
from core.ledger.models import CodeRedemption, CreditCode
from core.paging import Page
from core.runtime import Runtime
from core.throttle.service import HOUR, Rate

LONGEST_CODE = 64
MOST_CREDITS = 10**12  # of one redemption: sums of any number of them stay far within 64 bits
MOST_REDEMPTIONS = 10**9


@dataclass(frozen=True)
class CodeUse:
    """A code, and how often it was redeemed."""

    code: CreditCode
    redemptions: int


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
    redemptions = (per_account, 1 if max_redemptions is None else max_redemptions)
    if not 1 <= credits_each <= MOST_CREDITS or not all(1 <= most <= MOST_REDEMPTIONS for most in redemptions):
        raise InvalidRequestError(
            f"credits are 1 to {MOST_CREDITS:,}, max_redemptions and per_account 1 to {MOST_REDEMPTIONS:,}.",
            param="credits",
        )
    code_id = new_id("code_")
    made = insert_or_ignore(
        session,
        CreditCode,
        id=code_id,
        code=name,
        credits=credits_each,
        expires_at=expires_at,
        max_redemptions=max_redemptions,
        per_account=per_account,
        created_at=utc_now(),
    )
    if not made:
        raise ConflictError(f"The code {name} exists already.", code="code_exists", param="code")
    audit.record(
        session,
        AuditType.CREDIT_CODE_CREATED,
        organization_id=None,
        object_id=code_id,
        code=name,
        credits=credits_each,
        max_redemptions=max_redemptions,
    )
    return session.get_one(CreditCode, code_id)


def create_code_once(
    session: Session,
    request: CreateRequest,
    code: str,
    credits_each: int,
    *,
    expires_at: datetime | None,
    max_redemptions: int | None,
    per_account: int,
) -> CodeUse:
    """As `create_code`; a retried create returns the first code."""

    def make() -> str:
        return create_code(
            session,
            code,
            credits_each,
            expires_at=expires_at,
            max_redemptions=max_redemptions,
            per_account=per_account,
        ).id

    code_id = once(session, request, make)
    return _use(session, session.get_one(CreditCode, code_id))


def list_codes(session: Session, *, after: str | None = None, limit: int) -> Page[CodeUse]:
    """A page of all codes, newest first."""
    rows = queries.codes(session, after, limit + 1)
    return Page.of([CodeUse(code, redemptions) for code, redemptions in rows], limit)


def disable_code(session: Session, code: str) -> CodeUse:
    """Make a code worthless from now on; what it gave stays. Raises UnknownCodeError. Disabling twice is no error."""
    row = _locked(session, code)
    row.disabled_at = row.disabled_at or utc_now()
    session.flush()
    audit.record(session, AuditType.CREDIT_CODE_DISABLED, organization_id=None, object_id=row.id, code=row.code)
    return _use(session, row)


def enable_code(session: Session, code: str) -> CodeUse:
    """Let a disabled code work again, as far as its end and its uses allow. Raises UnknownCodeError."""
    row = _locked(session, code)
    row.disabled_at = None
    session.flush()
    audit.record(session, AuditType.CREDIT_CODE_ENABLED, organization_id=None, object_id=row.id, code=row.code)
    return _use(session, row)


def get_code(session: Session, code: str) -> CodeUse:
    """A code and how often it was redeemed. Raises UnknownCodeError."""
    return _use(session, _locked(session, code))


def _locked(session: Session, code: str) -> CreditCode:
    row = queries.lock_code(session, normalise(code)[:LONGEST_CODE])
    if row is None:
        raise _unknown()
    return row


def _use(session: Session, row: CreditCode) -> CodeUse:
    return CodeUse(row, queries.count_redemptions(session, row.id))


def redeem(session: Session, organization_id: str, code: str) -> Redemption:
    """Turn a code into credits. Raises UnknownCodeError, ConflictError or InvalidRequestError, saying why not."""
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
    audit.record(
        session,
        AuditType.CREDIT_CODE_REDEEMED,
        organization_id=organization_id,
        object_id=row.id,
        code=row.code,
        credits=row.credits,
    )
    return _redemption(session, use)


def redeem_once(runtime: Runtime, actor: Actor, code: str, request: CreateRequest) -> Redemption:
    """As `redeem`; a retried redemption returns the first result, and guessing is slowed (RateLimitError)."""

    def work(session: Session) -> Redemption:
        use_id = once(session, request, lambda: redeem(session, actor.organization_id, code).id)
        return _redemption(session, session.get_one(CodeRedemption, use_id))

    with slow_guessing(runtime, actor):
        return runtime.database.run(work)


def slow_guessing(runtime: Runtime, actor: Actor) -> AbstractContextManager[None]:
    """Count unknown codes inside against the caller's account and address. Raises RateLimitError above the rate."""
    amount = runtime.settings.code_guesses_per_hour
    return runtime.throttle.failures(
        UnknownCodeError,
        (Rate("unknown credit codes for this account", amount, HOUR), actor.organization_id),
        (Rate("unknown credit codes from this address", amount, HOUR), actor.address),
    )


def _unknown() -> UnknownCodeError:
    return UnknownCodeError("No such credit code. Check its spelling.", param="code")


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
