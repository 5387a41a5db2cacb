"""SQL of workers."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.fleet.models import WorkerRow


def alive(session: Session, since: datetime) -> Sequence[WorkerRow]:
    """Workers heard of since then and not stopped, oldest first."""
    query = select(WorkerRow).where(WorkerRow.heartbeat_at >= since, WorkerRow.stopped_at.is_(None))
    return session.scalars(query.order_by(WorkerRow.id)).all()
