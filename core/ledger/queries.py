"""SQL of the books.

Locks are taken in one order: code, then the organization's `available` account. Every verb takes that account first,
so whatever happens to one organization's credits happens one after another.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.ledger.models import (
    CodeRedemption,
    CreditCode,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    TransactionKind,
)


def lock_account(session: Session, account_id: str) -> None:
    """Hold the account's row until the transaction ends; on SQLite the whole database is held already.

    The weaker of PostgreSQL's two row locks: entries of others may still refer to the account meanwhile.
    """
    query = select(LedgerAccount.id).where(LedgerAccount.id == account_id)
    session.execute(query.with_for_update(key_share=True))


def balance(session: Session, account_id: str) -> int:
    """The sum of the account's entries, in credits."""
    query = select(func.coalesce(func.sum(LedgerEntry.amount_credits), 0)).where(LedgerEntry.account_id == account_id)
    return int(session.scalar(query) or 0)


def transaction_by_key(session: Session, idempotency_key: str) -> LedgerTransaction | None:
    """The transaction already booked under this key."""
    return session.scalars(
        select(LedgerTransaction).where(LedgerTransaction.idempotency_key == idempotency_key)
    ).first()


def job_amounts(session: Session, job_id: str) -> dict[TransactionKind, int]:
    """Credits held, captured, released and refunded for a job."""
    rows = session.execute(
        select(LedgerTransaction.kind, func.sum(LedgerTransaction.amount_credits))
        .where(LedgerTransaction.job_id == job_id)
        .group_by(LedgerTransaction.kind)
    )
    return {TransactionKind(kind): int(amount) for kind, amount in rows}


def transactions(session: Session, organization_id: str, after: str | None, limit: int) -> list[LedgerTransaction]:
    """A page of an organization's transactions, newest first."""
    query = select(LedgerTransaction).where(LedgerTransaction.organization_id == organization_id)
    if after is not None:
        query = query.where(LedgerTransaction.id < after)
    return list(session.scalars(query.order_by(LedgerTransaction.id.desc()).limit(limit)))


def balance_behind(session: Session, account_id: str, transaction_id: str) -> int:
    """What the account held once this transaction was booked: the sum of its entries up to then, in credits."""
    query = select(func.coalesce(func.sum(LedgerEntry.amount_credits), 0)).where(
        LedgerEntry.account_id == account_id, LedgerEntry.transaction_id <= transaction_id
    )
    return int(session.scalar(query) or 0)


def lock_code(session: Session, code: str) -> CreditCode | None:
    """The code with this (normalised) name, held until the transaction ends."""
    return session.scalars(select(CreditCode).where(CreditCode.code == code).with_for_update()).first()


def codes(session: Session, after: str | None, limit: int) -> list[tuple[CreditCode, int]]:
    """A page of all codes, newest first, each with how often it was redeemed."""
    redeemed = (
        select(func.count()).select_from(CodeRedemption).where(CodeRedemption.code_id == CreditCode.id)
    ).scalar_subquery()
    query = select(CreditCode, redeemed)
    if after is not None:
        query = query.where(CreditCode.id < after)
    rows = session.execute(query.order_by(CreditCode.id.desc()).limit(limit))
    return [(code, int(redemptions)) for code, redemptions in rows]


def count_redemptions(session: Session, code_id: str, organization_id: str | None = None) -> int:
    """How often a code was redeemed, by anyone or by one organization."""
    query = select(func.count()).select_from(CodeRedemption).where(CodeRedemption.code_id == code_id)
    if organization_id is not None:
        query = query.where(CodeRedemption.organization_id == organization_id)
    return int(session.scalar(query) or 0)


def has_redeemed(session: Session, code: str, organization_id: str) -> bool:
    """Whether the organization has redeemed the code with this (normalised) name."""
    query = (
        select(CodeRedemption.id)
        .join(CreditCode, CreditCode.id == CodeRedemption.code_id)
        .where(CreditCode.code == code, CodeRedemption.organization_id == organization_id)
    )
    return session.scalars(query.limit(1)).first() is not None
