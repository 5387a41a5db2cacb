"""SQL of rehearsals."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from core.plans.models import Rehearsal


def unanswered(session: Session, limit: int) -> Sequence[str]:
    """Ids of rehearsals that wait for a worker, oldest first."""
    query = select(Rehearsal.id).where(Rehearsal.finished_at.is_(None)).order_by(Rehearsal.created_at)
    return session.scalars(query.limit(limit)).all()


def delete_rehearsals(session: Session, *, before: datetime, refused_before: datetime) -> None:
    """Drop rehearsals asked for before a time, and those that failed before another."""
    refused = and_(Rehearsal.error.is_not(None), Rehearsal.finished_at < refused_before)
    session.execute(delete(Rehearsal).where(or_(Rehearsal.created_at < before, refused)))
