"""SQL of usage."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.accounts.models import Organization
from core.artifacts.models import Checkpoint, JobArtifact
from core.datasets.models import StoredFile
from core.jobs.models import Job
from core.ledger.models import LedgerTransaction, TransactionKind
from core.usage.models import StorageDay


@dataclass(frozen=True)
class Span:
    """From when until before when, and whose; None: everybody's."""

    start: datetime
    end: datetime
    organization_id: str | None = None


def organizations(session: Session, span: Span) -> list[tuple[str, str]]:
    """Ids and names of the organizations, oldest first."""
    query = select(Organization.id, Organization.name).order_by(Organization.id)
    if span.organization_id is not None:
        query = query.where(Organization.id == span.organization_id)
    return [(organization_id, name) for organization_id, name in session.execute(query)]


def finished_jobs(session: Session, span: Span) -> Iterator[tuple[str, datetime, int, float]]:
    """Organization, end, trained tokens and charged device seconds of every job that ended, deleted ones too."""
    query = select(Job.organization_id, Job.finished_at, Job.processed_tokens, Job.used_seconds)
    for organization_id, finished_at, tokens, seconds in session.execute(
        _within(query, span, Job.organization_id, Job.finished_at)
    ):
        yield organization_id, finished_at, int(tokens or 0), float(seconds)


def charges(session: Session, span: Span) -> Iterator[tuple[str, datetime, TransactionKind, int]]:
    """Organization, moment, kind and credits of every charge and refund in the books."""
    query = select(
        LedgerTransaction.organization_id,
        LedgerTransaction.created_at,
        LedgerTransaction.kind,
        LedgerTransaction.amount_credits,
    ).where(LedgerTransaction.kind.in_((TransactionKind.CAPTURE, TransactionKind.REFUND)))
    for organization_id, created_at, kind, amount in session.execute(
        _within(query, span, LedgerTransaction.organization_id, LedgerTransaction.created_at)
    ):
        yield organization_id, created_at, kind, int(amount)


def job_costs(session: Session, span: Span) -> Iterator[tuple[datetime, str | None, str | None, TransactionKind, int]]:
    """Moment, base model, user, kind and credits of every charge and refund of a job in the books, oldest first."""
    query = (
        select(
            LedgerTransaction.created_at,
            Job.model,
            Job.user_id,
            LedgerTransaction.kind,
            LedgerTransaction.amount_credits,
        )
        .outerjoin(Job, Job.id == LedgerTransaction.job_id)
        .where(LedgerTransaction.kind.in_((TransactionKind.CAPTURE, TransactionKind.REFUND)))
        .order_by(LedgerTransaction.id)
    )
    for created_at, model, user_id, kind, amount in session.execute(
        _within(query, span, LedgerTransaction.organization_id, LedgerTransaction.created_at)
    ):
        yield created_at, model, user_id, kind, int(amount)


def storage_days(session: Session, span: Span) -> Iterator[tuple[str, datetime, int]]:
    """Organization, day and the most bytes it stored."""
    query = select(StorageDay.organization_id, StorageDay.day, StorageDay.most_bytes)
    for organization_id, day, most_bytes in session.execute(
        _within(query, span, StorageDay.organization_id, StorageDay.day)
    ):
        yield organization_id, day, int(most_bytes)


def stored_bytes(session: Session) -> Counter[str]:
    """What each organization stores now: files, what jobs published, and checkpoints that are kept."""
    total: Counter[str] = Counter()
    for query in (
        select(StoredFile.organization_id, func.sum(StoredFile.size_bytes)).group_by(StoredFile.organization_id),
        select(Job.organization_id, func.sum(JobArtifact.size_bytes))
        .join(Job, Job.id == JobArtifact.job_id)
        .group_by(Job.organization_id),
        select(Job.organization_id, func.sum(Checkpoint.size_bytes))
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.storage_key.is_not(None))
        .group_by(Job.organization_id),
    ):
        for organization_id, size_bytes in session.execute(query):
            total[organization_id] += int(size_bytes or 0)
    return total


def _within(
    query: Any, span: Span, organization: InstrumentedAttribute[str], moment: InstrumentedAttribute[Any]
) -> Any:
    query = query.where(moment >= span.start, moment < span.end)
    return query if span.organization_id is None else query.where(organization == span.organization_id)
