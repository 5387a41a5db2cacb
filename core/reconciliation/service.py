"""Proving the books from their rows alone: sums, holds, balances, codes, and that they agree with the jobs.

Nothing here trusts the code that wrote the rows, nor the triggers that guard them.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.ledger.models import AccountKind
from core.reconciliation import queries
from core.reconciliation.queries import JobBooks, JobSays


@dataclass(frozen=True)
class Fault:
    """One place where the books are broken, and how."""

    where: str
    problem: str


@dataclass(frozen=True)
class Proof:
    """What was looked at and what is wrong with it. Sound books have no faults."""

    transactions: int
    entries: int
    jobs: int
    faults: tuple[Fault, ...]


def verify(session: Session) -> Proof:
    """Check every row of the books. The session must see them at one moment: `Database.snapshot`."""
    transactions, entries = queries.count_rows(session)
    books = list(queries.books_of_jobs(session))
    faults = [
        *_entries(session),
        *(fault for job_books in books for fault in _job(job_books)),
        *(Fault(job_id, "the job has no hold") for job_id in queries.jobs_without_hold(session)),
        *_balances(session, books),
        *_codes(session),
    ]
    return Proof(transactions, entries, len(books), tuple(faults))


def _entries(session: Session) -> Iterator[Fault]:
    for transaction_id, amount, number, total in queries.unbalanced(session):
        yield Fault(
            transaction_id,
            f"a transaction of {amount:,} credits has {number} entries with the sum {total or 0:,}; it needs "
            f"{-amount:,} and {amount:,}",
        )
    for entry_id in queries.orphaned_entries(session):
        yield Fault(entry_id, "the entry belongs to no transaction")
    for transaction_id, kind, amount, account_id in queries.misrouted(session):
        yield Fault(transaction_id, f"a {kind} does not move {amount:,} credits on {account_id}")


def _job(books: JobBooks) -> Iterator[Fault]:
    remaining = books.held - books.captured - books.released
    if books.most_of_a_kind > 1:
        yield Fault(books.job_id, f"it was held, charged or released {books.most_of_a_kind} times; each happens once")
    if remaining < 0:
        yield Fault(
            books.job_id,
            f"{books.captured:,} credits charged and {books.released:,} released are more than the {books.held:,} held",
        )
    if books.refunded > books.captured:
        yield Fault(books.job_id, f"{books.refunded:,} credits refunded are more than the {books.captured:,} charged")
    if books.job is None:
        yield Fault(books.job_id, "credits were moved for a job that does not exist")
    else:
        yield from _agreement(books, books.job, remaining)


def _agreement(books: JobBooks, job: JobSays, remaining: int) -> Iterator[Fault]:
    if job.organization_id != books.organization_id:
        yield Fault(books.job_id, f"{books.organization_id} paid for a job of {job.organization_id}")
    if books.held != job.quote_credits:
        yield Fault(books.job_id, f"{books.held:,} credits were held for a quote of {job.quote_credits:,}")
    if job.status.is_finished:
        if remaining != 0:
            yield Fault(books.job_id, f"{remaining:,} credits are still held for a job that is {job.status}")
        if (job.charged_credits or 0) != books.captured:
            yield Fault(
                books.job_id, f"the job shows {job.charged_credits} credits charged; {books.captured:,} were booked"
            )
    elif remaining != books.held:
        yield Fault(books.job_id, f"the hold was resolved while the job is {job.status}")


def _balances(session: Session, books: list[JobBooks]) -> Iterator[Fault]:
    held: dict[str, int] = defaultdict(int)
    for job in books:
        held[job.organization_id] += job.held - job.captured - job.released
    total = 0
    for account_id, kind, organization_id, balance in queries.balances(session):
        total += balance
        if kind in (AccountKind.AVAILABLE, AccountKind.HELD, AccountKind.REVENUE) and balance < 0:
            yield Fault(account_id, f"the balance is {balance:,}")
        if kind is AccountKind.HELD and balance != held[organization_id or ""]:
            yield Fault(account_id, f"the balance is {balance:,}; its jobs hold {held[organization_id or '']:,}")
    if total != 0:
        yield Fault("all accounts", f"the entries sum to {total:,}; no credits may appear or vanish")


def _codes(session: Session) -> Iterator[Fault]:
    for transaction_id in queries.unmatched_grants(session):
        yield Fault(transaction_id, "the grant for a code matches no redemption of it")
    for code, number in queries.redeemed_too_often(session):
        yield Fault(code, f"the code was redeemed {number} times, more than it allows")
