"""The five verbs of the books, each safe to repeat, and the balance as the sum of the rows."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.audit import service as audit
from core.audit.models import AuditType
from core.db.upsert import insert_or_ignore
from core.errors import ConflictError, InsufficientCreditsError, InvalidRequestError, NotFoundError
from core.ids import new_id
from core.ledger import queries
from core.ledger.models import (
    ROUTES,
    SYSTEM_ACCOUNTS,
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


@dataclass(frozen=True)
class _Movement:
    """A transaction that may have been booked before; its key says which one it is."""

    kind: TransactionKind
    organization_id: str
    amount_credits: int
    idempotency_key: str
    job_id: str | None = None
    code_id: str | None = None


def balance(session: Session, organization_id: str) -> Balance:
    """The organization's balance, summed from its rows."""
    return Balance(
        queries.balance(session, account_id_of(AccountKind.AVAILABLE, organization_id)),
        queries.balance(session, account_id_of(AccountKind.HELD, organization_id)),
    )


def account_id_of(kind: AccountKind, organization_id: str | None) -> str:
    """The id of an account; None for the system's."""
    return f"acct_{organization_id or 'system'}_{kind}"


def list_transactions(
    session: Session, organization_id: str, *, after: str | None, limit: int
) -> Page[LedgerTransaction]:
    """A page of the organization's transactions, newest first."""
    return Page.of(queries.transactions(session, organization_id, after, limit + 1), limit)


@dataclass(frozen=True)
class StatementLine:
    """A transaction, what it did to the balance that can be spent, and that balance behind it, in credits."""

    transaction: LedgerTransaction
    change_credits: int
    balance_credits: int


def statement(session: Session, organization_id: str, *, after: str | None, limit: int) -> Page[StatementLine]:
    """As `list_transactions`, with the running balance."""
    page = list_transactions(session, organization_id, after=after, limit=limit)
    if not page.rows:
        return Page((), has_more=False)
    available = account_id_of(AccountKind.AVAILABLE, organization_id)
    balance_then = queries.balance_behind(session, available, page.rows[0].id)
    lines = []
    for transaction in page.rows:
        source, target = ROUTES[transaction.kind]
        direction = (target is AccountKind.AVAILABLE) - (source is AccountKind.AVAILABLE)
        lines.append(StatementLine(transaction, direction * transaction.amount_credits, balance_then))
        balance_then -= lines[-1].change_credits
    return Page(lines, page.has_more)


def grant(
    session: Session, organization_id: str, amount_credits: int, *, idempotency_key: str, code_id: str | None = None
) -> LedgerTransaction:
    """Give an organization credits. Raises ConflictError where the key was used for another movement."""
    _lock(session, organization_id)
    movement = _Movement(TransactionKind.GRANT, organization_id, amount_credits, idempotency_key, code_id=code_id)
    return _booked(session, movement) or _book(session, movement)


def hold(session: Session, organization_id: str, job_id: str, amount_credits: int) -> LedgerTransaction:
    """Set a job's quote aside. Raises InsufficientCreditsError, and ConflictError for another amount than before."""
    available = _lock(session, organization_id)
    movement = _Movement(TransactionKind.HOLD, organization_id, amount_credits, f"hold:{job_id}", job_id)
    done = _booked(session, movement)
    if done is not None:
        return done
    spendable = queries.balance(session, available.id)
    if spendable < amount_credits:
        raise InsufficientCreditsError(
            f"This job is quoted at {amount_credits:,} credits and {spendable:,} are available. "
            "Redeem a credit code, or ask for a smaller or cheaper plan.",
        )
    return _book(session, movement)


def capture(session: Session, organization_id: str, job_id: str, amount_credits: int) -> LedgerTransaction:
    """Charge a job for what it used, once.

    Raises ConflictError above what is still held for it, and for another amount than before.
    """
    _lock(session, organization_id)
    movement = _Movement(TransactionKind.CAPTURE, organization_id, amount_credits, f"capture:{job_id}", job_id)
    done = _booked(session, movement)
    if done is not None:
        return done
    remaining = _remaining(session, job_id)
    if amount_credits > remaining:
        raise ConflictError(f"{amount_credits:,} credits cannot be charged: {remaining:,} are held for job {job_id}.")
    return _book(session, movement)


def release(session: Session, organization_id: str, job_id: str) -> LedgerTransaction | None:
    """Give back whatever is still held for a job; None where nothing ever was to give back."""
    _lock(session, organization_id)
    key = f"release:{job_id}"
    remaining = _remaining(session, job_id)
    if remaining == 0:
        return queries.transaction_by_key(session, key)
    return _book(session, _Movement(TransactionKind.RELEASE, organization_id, remaining, key, job_id))


def settle(session: Session, organization_id: str, job_id: str, used_credits: int) -> int:
    """Resolve a job's hold: charge what it used, at most what is held, and release the rest. Returns the charge.

    A hold resolves once: settling again, with whatever amount, changes nothing and returns the first charge.
    """
    _lock(session, organization_id)
    charge = min(used_credits, _remaining(session, job_id))
    if charge > 0:
        capture(session, organization_id, job_id, charge)
    release(session, organization_id, job_id)
    return queries.job_amounts(session, job_id).get(TransactionKind.CAPTURE, 0)


def refund(
    session: Session, job_id: str, amount_credits: int | None = None, *, reference: str = "full"
) -> LedgerTransaction:
    """Give back what a job was charged, or a part of it; None means all that is left of the charge.

    `reference` names the refund: the same one again returns the first. Raises NotFoundError for a job that was never
    charged, InvalidRequestError above what is left of its charge, ConflictError for a reference used with another
    amount.
    """
    charged = queries.transaction_by_key(session, f"capture:{job_id}")
    if charged is None:
        raise NotFoundError(f"The job {job_id!r} was never charged.", code="nothing_charged", param="job_id")
    _lock(session, charged.organization_id)
    key = f"refund:{job_id}:{reference}"
    earlier = queries.transaction_by_key(session, key)
    if earlier is not None and amount_credits is None:
        return earlier
    left = charged.amount_credits - queries.job_amounts(session, job_id).get(TransactionKind.REFUND, 0)
    amount = left if amount_credits is None else amount_credits
    movement = _Movement(TransactionKind.REFUND, charged.organization_id, amount, key, job_id)
    done = _booked(session, movement)
    if done is not None:
        return done
    if not 0 < amount <= left:
        raise InvalidRequestError(
            f"{amount:,} credits cannot be refunded: {left:,} of the {charged.amount_credits:,} charged for job "
            f"{job_id} are left.",
            code="refund_above_charge",
            param="credits",
        )
    audit.record(
        session,
        AuditType.CREDITS_REFUNDED,
        organization_id=charged.organization_id,
        object_id=job_id,
        credits=amount,
        reference=reference,
    )
    return _book(session, movement)


def _remaining(session: Session, job_id: str) -> int:
    amounts = queries.job_amounts(session, job_id)
    return (
        amounts.get(TransactionKind.HOLD, 0)
        - amounts.get(TransactionKind.CAPTURE, 0)
        - amounts.get(TransactionKind.RELEASE, 0)
    )


def _lock(session: Session, organization_id: str) -> LedgerAccount:
    """The organization's `available` account, held until the transaction ends: its books change one at a time."""
    available = _account(session, AccountKind.AVAILABLE, organization_id)
    queries.lock_account(session, available.id)
    return available


def _account(session: Session, kind: AccountKind, organization_id: str | None) -> LedgerAccount:
    # The id is derived from what the account is, so that of two first uses at once one insert is ignored.
    account_id = account_id_of(kind, organization_id)
    found = session.get(LedgerAccount, account_id)
    if found is None:
        insert_or_ignore(session, LedgerAccount, id=account_id, kind=kind, organization_id=organization_id)
        found = session.get_one(LedgerAccount, account_id)
    return found


def _booked(session: Session, movement: _Movement) -> LedgerTransaction | None:
    """The transaction that was booked under the movement's key. Raises ConflictError where it was another movement."""
    done = queries.transaction_by_key(session, movement.idempotency_key)
    if done is None:
        return None
    earlier = _Movement(
        done.kind, done.organization_id, done.amount_credits, done.idempotency_key, done.job_id, done.code_id
    )
    if earlier != movement:
        raise ConflictError(
            f"{movement.idempotency_key!r} was booked as a {done.kind} of {done.amount_credits:,} credits; it cannot "
            f"become a {movement.kind} of {movement.amount_credits:,}.",
            code="already_booked",
        )
    return done


def _book(session: Session, movement: _Movement) -> LedgerTransaction:
    """Write both entries, then the transaction that closes them: the order that the triggers insist on."""
    amount, transaction_id = movement.amount_credits, new_id("txn_")
    for kind, credits_in in zip(ROUTES[movement.kind], (-amount, amount), strict=True):
        account = _account(session, kind, None if kind in SYSTEM_ACCOUNTS else movement.organization_id)
        session.add(
            LedgerEntry(
                id=new_id("entry_"), transaction_id=transaction_id, account_id=account.id, amount_credits=credits_in
            )
        )
    session.flush()
    transaction = LedgerTransaction(
        id=transaction_id,
        kind=movement.kind,
        organization_id=movement.organization_id,
        idempotency_key=movement.idempotency_key,
        job_id=movement.job_id,
        code_id=movement.code_id,
        amount_credits=amount,
    )
    session.add(transaction)
    session.flush()
    return transaction
