"""SQL that looks for what the books must never hold. A query of broken rows finds none in sound books."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, and_, case, func, or_, select
from sqlalchemy.orm import Session

from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger.models import (
    ROUTES,
    SYSTEM_ACCOUNTS,
    AccountKind,
    CodeRedemption,
    CreditCode,
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    TransactionKind,
)

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class JobSays:
    """What a job's own row says of its credits."""

    organization_id: str
    status: JobStatus
    quote_credits: int
    charged_credits: int | None


@dataclass(frozen=True)
class JobBooks:
    """What was booked for one job, in credits. `job` is None where no such job exists."""

    job_id: str
    organization_id: str
    held: int
    captured: int
    released: int
    refunded: int
    most_of_a_kind: int  # how often the most frequent of hold, capture and release was booked
    job: JobSays | None


def count_rows(session: Session) -> tuple[int, int]:
    """How many transactions and entries there are."""
    return (
        session.scalar(select(func.count()).select_from(LedgerTransaction)) or 0,
        session.scalar(select(func.count()).select_from(LedgerEntry)) or 0,
    )


def unbalanced(session: Session) -> Sequence[Row[str, int, int, int | None]]:
    """Transactions whose entries are not exactly two that add up: id, amount, number and sum of its entries."""
    total, number = func.sum(LedgerEntry.amount_credits), func.count(LedgerEntry.id)
    query = (
        select(LedgerTransaction.id, LedgerTransaction.amount_credits, number, total)
        .outerjoin(LedgerEntry, LedgerEntry.transaction_id == LedgerTransaction.id)
        .group_by(LedgerTransaction.id, LedgerTransaction.amount_credits)
        .having(
            or_(
                number != 2,
                total != 0,
                func.max(LedgerEntry.amount_credits) != LedgerTransaction.amount_credits,
            )
        )
        .order_by(LedgerTransaction.id)
    )
    return session.execute(query).all()


def orphaned_entries(session: Session) -> Sequence[str]:
    """Entries of no transaction."""
    query = (
        select(LedgerEntry.id)
        .outerjoin(LedgerTransaction, LedgerTransaction.id == LedgerEntry.transaction_id)
        .where(LedgerTransaction.id.is_(None))
        .order_by(LedgerEntry.id)
    )
    return session.scalars(query).all()


def misrouted(session: Session) -> Sequence[Row[str, TransactionKind, int, str]]:
    """Entries on an account their transaction does not touch: transaction, its kind, the amount, the account."""
    wrong_kind = [
        and_(
            LedgerTransaction.kind == kind,
            or_(
                and_(LedgerEntry.amount_credits < 0, LedgerAccount.kind != source),
                and_(LedgerEntry.amount_credits > 0, LedgerAccount.kind != target),
            ),
        )
        for kind, (source, target) in ROUTES.items()
    ]
    elsewhere = and_(
        LedgerAccount.kind.not_in(SYSTEM_ACCOUNTS),
        or_(
            LedgerAccount.organization_id.is_(None), LedgerAccount.organization_id != LedgerTransaction.organization_id
        ),
    )
    query = (
        select(LedgerTransaction.id, LedgerTransaction.kind, LedgerEntry.amount_credits, LedgerAccount.id)
        .join(LedgerEntry, LedgerEntry.transaction_id == LedgerTransaction.id)
        .join(LedgerAccount, LedgerAccount.id == LedgerEntry.account_id)
        .where(or_(*wrong_kind, elsewhere))
        .order_by(LedgerTransaction.id)
    )
    return session.execute(query).all()


def balances(session: Session) -> Sequence[Row[str, AccountKind, str | None, int]]:
    """Every account with entries: id, kind, organization, balance."""
    query = (
        select(
            LedgerAccount.id,
            LedgerAccount.kind,
            LedgerAccount.organization_id,
            func.sum(LedgerEntry.amount_credits),
        )
        .join(LedgerEntry, LedgerEntry.account_id == LedgerAccount.id)
        .group_by(LedgerAccount.id, LedgerAccount.kind, LedgerAccount.organization_id)
        .order_by(LedgerAccount.id)
    )
    return session.execute(query).all()


def books_of_jobs(session: Session) -> Iterator[JobBooks]:
    """What was booked for each job, by job."""

    def booked(kind: TransactionKind) -> list[object]:
        is_kind = LedgerTransaction.kind == kind
        return [
            func.coalesce(func.sum(case((is_kind, LedgerTransaction.amount_credits))), 0),
            func.count(case((is_kind, 1))),
        ]

    kinds = (TransactionKind.HOLD, TransactionKind.CAPTURE, TransactionKind.RELEASE, TransactionKind.REFUND)
    sums = (
        select(
            LedgerTransaction.job_id,
            func.min(LedgerTransaction.organization_id).label("organization_id"),
            *[column for kind in kinds for column in booked(kind)],
        )
        .where(LedgerTransaction.job_id.is_not(None))
        .group_by(LedgerTransaction.job_id)
        .subquery()
    )
    query = (
        select(sums, Job.organization_id, Job.status, Job.quote_credits, Job.charged_credits)
        .outerjoin(Job, Job.id == sums.c.job_id)
        .order_by(sums.c.job_id)
    )
    for row in session.execute(query).yield_per(ROWS_AT_ONCE):
        job_id, payer, held, holds, captured, captures, released, releases, refunded, _, *says = row
        most = max(holds, captures, releases)
        job = JobSays(*says) if says[0] is not None else None
        yield JobBooks(job_id, payer, int(held), int(captured), int(released), int(refunded), most, job)


def jobs_without_hold(session: Session) -> Sequence[str]:
    """Jobs for which nothing was ever held."""
    has_hold = (
        select(LedgerTransaction.id)
        .where(LedgerTransaction.job_id == Job.id, LedgerTransaction.kind == TransactionKind.HOLD)
        .exists()
    )
    return session.scalars(select(Job.id).where(~has_hold).order_by(Job.id)).all()


def unmatched_grants(session: Session) -> Sequence[str]:
    """Grants for a code without a redemption that says so, with its organization and the code's amount."""
    query = (
        select(LedgerTransaction.id)
        .outerjoin(CodeRedemption, CodeRedemption.transaction_id == LedgerTransaction.id)
        .outerjoin(CreditCode, CreditCode.id == CodeRedemption.code_id)
        .where(
            LedgerTransaction.code_id.is_not(None),
            or_(
                CodeRedemption.id.is_(None),
                CodeRedemption.code_id != LedgerTransaction.code_id,
                CodeRedemption.organization_id != LedgerTransaction.organization_id,
                CreditCode.credits != LedgerTransaction.amount_credits,
                LedgerTransaction.kind != TransactionKind.GRANT,
            ),
        )
        .order_by(LedgerTransaction.id)
    )
    return session.scalars(query).all()


def redeemed_too_often(session: Session) -> Sequence[Row[str, int]]:
    """Codes over their total or an organization's limit: the code, and how often it was redeemed."""
    total = (
        select(CreditCode.code, func.count())
        .join(CodeRedemption, CodeRedemption.code_id == CreditCode.id)
        .group_by(CreditCode.id, CreditCode.code, CreditCode.max_redemptions)
        .having(func.count() > CreditCode.max_redemptions)
    )
    each = (
        select(CreditCode.code, func.count())
        .join(CodeRedemption, CodeRedemption.code_id == CreditCode.id)
        .group_by(CreditCode.id, CreditCode.code, CreditCode.per_account, CodeRedemption.organization_id)
        .having(func.count() > CreditCode.per_account)
    )
    return [*session.execute(total).all(), *session.execute(each).all()]
