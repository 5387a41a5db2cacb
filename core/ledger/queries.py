"""SQL of the books. Locks are taken in one order, account before code never, code before account always."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.ledger.models import (
    AccountKind,
    CodeRedemption,
    CreditCode,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    TransactionKind,
)


def account(session: Session, kind: AccountKind, organization_id: str | None) -> LedgerAccount | None:
    """One account, unlocked."""
    owner = (
        LedgerAccount.organization_id.is_(None)
        if organization_id is None
        else LedgerAccount.organization_id == organization_id
    )
    return session.scalars(select(LedgerAccount).where(LedgerAccount.kind == kind, owner)).first()


def lock_account(session: Session, account_id: str) -> None:
    """Hold the account's row until the transaction ends; on SQLite the whole database is held already."""
    session.execute(select(LedgerAccount.id).where(LedgerAccount.id == account_id).with_for_update())


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
    """Credits held, captured and released for a job."""
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


def lock_code(session: Session, code: str) -> CreditCode | None:
    """The code with this (normalised) name, held until the transaction ends."""
    return session.scalars(select(CreditCode).where(CreditCode.code == code).with_for_update()).first()


def codes(session: Session) -> list[CreditCode]:
    """Every code, by name."""
    return list(session.scalars(select(CreditCode).order_by(CreditCode.code)))


def count_redemptions(session: Session, code_id: str, organization_id: str | None = None) -> int:
    """How often a code was redeemed, by anyone or by one organization."""
    query = select(func.count()).select_from(CodeRedemption).where(CodeRedemption.code_id == code_id)
    if organization_id is not None:
        query = query.where(CodeRedemption.organization_id == organization_id)
    return int(session.scalar(query) or 0)
