"""The four verbs of the books, each safe to repeat, and the balance as the sum of the rows."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.db.upsert import insert_or_ignore
from core.errors import ConflictError, InsufficientCreditsError
from core.ids import new_id
from core.ledger import queries
from core.ledger.models import (
    AccountKind,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    TransactionKind,
)
from core.paging import Page


@dataclass(frozen=True)
class Balance:
    """An organization's credits: what it can spend, and what its unfinished jobs hold."""

    available_credits: int
    held_credits: int


def balance(session: Session, organization_id: str) -> Balance:
    """The organization's balance, summed from its rows."""
    amounts = [
        queries.balance(session, account.id) if account else 0
        for kind in (AccountKind.AVAILABLE, AccountKind.HELD)
        for account in [queries.account(session, kind, organization_id)]
    ]
    return Balance(*amounts)


def list_transactions(
    session: Session, organization_id: str, *, after: str | None, limit: int
) -> Page[LedgerTransaction]:
    """A page of the organization's transactions, newest first."""
    return Page.of(queries.transactions(session, organization_id, after, limit + 1), limit)


def grant(
    session: Session, organization_id: str, amount_credits: int, *, idempotency_key: str, code_id: str | None = None
) -> LedgerTransaction:
    """Give an organization credits."""
    return _move(
        session,
        TransactionKind.GRANT,
        organization_id,
        amount_credits,
        _account(session, AccountKind.GRANTS, None),
        _account(session, AccountKind.AVAILABLE, organization_id),
        idempotency_key=idempotency_key,
        code_id=code_id,
    )


def hold(session: Session, organization_id: str, job_id: str, amount_credits: int) -> LedgerTransaction:
    """Set a job's quote aside. Raises InsufficientCreditsError."""
    available = _account(session, AccountKind.AVAILABLE, organization_id)
    queries.lock_account(session, available.id)
    key = f"hold:{job_id}"
    spendable = queries.balance(session, available.id)
    if queries.transaction_by_key(session, key) is None and spendable < amount_credits:
        raise InsufficientCreditsError(
            f"This job is quoted at {amount_credits:,} credits and {spendable:,} are available. "
            "Redeem a credit code, or ask for a smaller or cheaper plan.",
        )
    held = _account(session, AccountKind.HELD, organization_id)
    return _move(
        session,
        TransactionKind.HOLD,
        organization_id,
        amount_credits,
        available,
        held,
        idempotency_key=key,
        job_id=job_id,
    )


def capture(session: Session, organization_id: str, job_id: str, amount_credits: int) -> LedgerTransaction:
    """Charge a job for what it used. Raises ConflictError above what is still held for it."""
    held = _account(session, AccountKind.HELD, organization_id)
    queries.lock_account(session, held.id)
    key = f"capture:{job_id}"
    remaining = _remaining(session, job_id)
    if queries.transaction_by_key(session, key) is None and amount_credits > remaining:
        raise ConflictError(f"{amount_credits:,} credits cannot be charged: {remaining:,} are held for job {job_id}.")
    revenue = _account(session, AccountKind.REVENUE, None)
    return _move(
        session,
        TransactionKind.CAPTURE,
        organization_id,
        amount_credits,
        held,
        revenue,
        idempotency_key=key,
        job_id=job_id,
    )


def release(session: Session, organization_id: str, job_id: str) -> LedgerTransaction | None:
    """Give back whatever is still held for a job; None where nothing is."""
    held = _account(session, AccountKind.HELD, organization_id)
    queries.lock_account(session, held.id)
    remaining = _remaining(session, job_id)
    if remaining == 0:
        return queries.transaction_by_key(session, f"release:{job_id}")
    available = _account(session, AccountKind.AVAILABLE, organization_id)
    return _move(
        session,
        TransactionKind.RELEASE,
        organization_id,
        remaining,
        held,
        available,
        idempotency_key=f"release:{job_id}",
        job_id=job_id,
    )


def settle(session: Session, organization_id: str, job_id: str, used_credits: int) -> int:
    """End a job's hold: charge what it used, at most what is held, and release the rest. Returns the charge."""
    charge = min(used_credits, _remaining(session, job_id))
    if charge > 0:
        capture(session, organization_id, job_id, charge)
    release(session, organization_id, job_id)
    return queries.job_amounts(session, job_id).get(TransactionKind.CAPTURE, 0)


def _remaining(session: Session, job_id: str) -> int:
    amounts = queries.job_amounts(session, job_id)
    return (
        amounts.get(TransactionKind.HOLD, 0)
        - amounts.get(TransactionKind.CAPTURE, 0)
        - amounts.get(TransactionKind.RELEASE, 0)
    )


def _account(session: Session, kind: AccountKind, organization_id: str | None) -> LedgerAccount:
    found = queries.account(session, kind, organization_id)
    if found is None:
        # The id is derived from what the account is, so that of two first uses at once one insert is ignored.
        account_id = f"acct_{organization_id or 'system'}_{kind}"
        insert_or_ignore(session, LedgerAccount, id=account_id, kind=kind, organization_id=organization_id)
        found = session.get_one(LedgerAccount, account_id)
    return found


def _move(
    session: Session,
    kind: TransactionKind,
    organization_id: str,
    amount_credits: int,
    source: LedgerAccount,
    target: LedgerAccount,
    *,
    idempotency_key: str,
    job_id: str | None = None,
    code_id: str | None = None,
) -> LedgerTransaction:
    done = queries.transaction_by_key(session, idempotency_key)
    if done is not None:
        return done
    transaction = LedgerTransaction(
        id=new_id("txn_"),
        kind=kind,
        organization_id=organization_id,
        idempotency_key=idempotency_key,
        job_id=job_id,
        code_id=code_id,
        amount_credits=amount_credits,
    )
    session.add(transaction)
    session.flush()
    session.add_all(
        [
            LedgerEntry(
                id=new_id("entry_"), transaction_id=transaction.id, account_id=source.id, amount_credits=-amount_credits
            ),
            LedgerEntry(
                id=new_id("entry_"), transaction_id=transaction.id, account_id=target.id, amount_credits=amount_credits
            ),
        ]
    )
    session.flush()
    return transaction
