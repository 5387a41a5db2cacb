"""SQL of rehearsals."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from core.plans.models import Rehearsal


def unanswered(session: Session, limit: int, organization_id: str | None = None) -> Sequence[str]:
    """Ids of rehearsals that wait for a worker, oldest first: all, or those that one organization asked for."""
    query = select(Rehearsal.id).where(Rehearsal.finished_at.is_(None)).order_by(Rehearsal.created_at)
    if organization_id is not None:
        query = query.where(Rehearsal.organization_id == organization_id)
    return session.scalars(query.limit(limit)).all()


def next_rehearsal(session: Session) -> str | None:
    """The oldest rehearsal that waits, of the organization whose last one was answered longest ago."""
    answered = (
        select(Rehearsal.organization_id, func.max(Rehearsal.finished_at).label("last"))
        .group_by(Rehearsal.organization_id)
        .subquery()
    )
    query = (
        select(Rehearsal.id)
        .outerjoin(answered, answered.c.organization_id == Rehearsal.organization_id)
        .where(Rehearsal.finished_at.is_(None))
        .order_by(answered.c.last.asc().nulls_first(), Rehearsal.created_at)
    )
    return session.scalars(query.limit(1)).first()


def delete_rehearsals(session: Session, *, before: datetime, refused_before: datetime) -> None:
    """Drop rehearsals asked for before a time, and those that failed before another."""
    refused = and_(Rehearsal.error.is_not(None), Rehearsal.finished_at < refused_before)
    session.execute(delete(Rehearsal).where(or_(Rehearsal.created_at < before, refused)))
