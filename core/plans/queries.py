"""SQL of plans that nobody uses, and of dry runs."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from core.db import claims
from core.plans.models import DryRunRow, Plan

_IDLE = Plan.is_used.is_(False)


def unanswered(session: Session, limit: int, organization_id: str | None = None) -> Sequence[str]:
    """Ids of dry runs that wait for a worker, oldest first: all, or those that one organization asked for."""
    query = select(DryRunRow.id).where(DryRunRow.finished_at.is_(None)).order_by(DryRunRow.created_at)
    if organization_id is not None:
        query = query.where(DryRunRow.organization_id == organization_id)
    return session.scalars(query.limit(limit)).all()


def count_idle(session: Session, organization_id: str) -> int:
    """How many plans of the organization no job uses."""
    query = select(func.count()).select_from(Plan).where(Plan.organization_id == organization_id, _IDLE)
    return int(session.scalar(query) or 0)


def delete_idle(session: Session, *, expired_before: datetime, limit: int) -> int:
    """Drop plans that no job uses and whose quotes ended before a time, at most so many; returns how many."""
    ids = session.scalars(select(Plan.id).where(Plan.expires_at < expired_before, _IDLE).limit(limit)).all()
    session.execute(delete(Plan).where(Plan.id.in_(ids), _IDLE).execution_options(synchronize_session=False))
    return len(ids)


def next_dry_run(session: Session, now: datetime) -> str | None:
    """The oldest dry run that waits for a worker, of the organization whose last one was answered longest ago."""
    answered = (
        select(DryRunRow.organization_id, func.max(DryRunRow.finished_at).label("last"))
        .group_by(DryRunRow.organization_id)
        .subquery()
    )
    query = (
        select(DryRunRow.id)
        .outerjoin(answered, answered.c.organization_id == DryRunRow.organization_id)
        .where(DryRunRow.finished_at.is_(None), claims.is_free(DryRunRow, now))
        .order_by(answered.c.last.asc().nulls_first(), DryRunRow.created_at)
    )
    return session.scalars(query.limit(1)).first()


def claim_dry_run(session: Session, dry_run_id: str, now: datetime, until: datetime) -> bool:
    """Take an unanswered dry run until a time; False where it is another's, or answered."""
    return claims.claim(session, DryRunRow, dry_run_id, now, until, DryRunRow.finished_at.is_(None))


def extend_dry_run(session: Session, dry_run_id: str, until: datetime) -> None:
    """Keep a claimed dry run until a time."""
    claims.extend(session, DryRunRow, dry_run_id, until)


def delete_dry_runs(session: Session, *, before: datetime, refused_before: datetime) -> None:
    """Drop dry runs asked for before a time, and those that failed before another."""
    refused = and_(DryRunRow.error.is_not(None), DryRunRow.finished_at < refused_before)
    session.execute(delete(DryRunRow).where(or_(DryRunRow.created_at < before, refused)))
