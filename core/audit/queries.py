"""SQL of the audit log."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, select
from sqlalchemy.orm import Session

from core.audit.models import AuditLog, AuditType


@dataclass(frozen=True)
class AuditFilter:
    """Which deeds are asked for; what is empty or None asks for any."""

    organization_id: str | None = None
    types: Collection[AuditType] = ()
    user_ids: Collection[str] = ()
    emails: Collection[str] = ()
    object_ids: Collection[str] = ()
    since: datetime | None = None
    before: datetime | None = None


def page(
    session: Session, wanted: AuditFilter, *, after: str | None, limit: int, before: str | None = None
) -> Sequence[AuditLog]:
    """A page of the log from just behind `after`, newest first; or else from just ahead of `before`, oldest first."""
    query = select(AuditLog)
    if wanted.organization_id is not None:
        query = query.where(AuditLog.organization_id == wanted.organization_id)
    for column, values in (
        (AuditLog.type, wanted.types),
        (AuditLog.actor_user_id, wanted.user_ids),
        (AuditLog.actor_email, wanted.emails),
        (AuditLog.object_id, wanted.object_ids),
    ):
        if values:
            query = query.where(column.in_(values))
    if wanted.since is not None:
        query = query.where(AuditLog.effective_at >= wanted.since)
    if wanted.before is not None:
        query = query.where(AuditLog.effective_at < wanted.before)
    if after is not None:
        query = query.where(AuditLog.id < after)
    if before is not None:
        query = query.where(AuditLog.id > before)
    order = AuditLog.id if before is not None and after is None else AuditLog.id.desc()
    return session.scalars(query.order_by(order).limit(limit)).all()


def delete_before(session: Session, moment: datetime, limit: int) -> int:
    """Drop the oldest entries from before then; returns how many."""
    oldest = select(AuditLog.id).where(AuditLog.effective_at < moment).order_by(AuditLog.effective_at).limit(limit)
    statement = delete(AuditLog).where(AuditLog.id.in_(oldest)).execution_options(synchronize_session=False)
    return cast(CursorResult[Any], session.execute(statement)).rowcount
