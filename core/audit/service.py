"""Writing down a deed within its own transaction, reading the log, and forgetting what is older than it is kept."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.acting import ActorKind, Person, acting
from core.audit import queries
from core.audit.models import AuditLog, AuditType
from core.audit.queries import AuditFilter
from core.db.session import database_now
from core.ids import new_id
from core.paging import Page
from core.settings import Settings

__all__ = ["FORGOTTEN_AT_ONCE", "forget_old", "list_audit_logs", "record"]

FORGOTTEN_AT_ONCE = 1000  # in one transaction


def record(
    session: Session,
    type: AuditType,
    *,
    organization_id: str | None,
    object_id: str | None,
    by: Person | None = None,
    **details: Any,
) -> None:
    """Write down what whoever acts does to an object of this organization; None: the installation's.

    `by` names who acts where a request is theirs only from here on: when they sign in.
    """
    who = acting()
    kind = ActorKind.SESSION if by is not None and who.kind is ActorKind.SYSTEM else who.kind
    if by is None and who.user_id is not None:
        by = Person(who.user_id, who.email)
    session.add(
        AuditLog(
            id=new_id("audit_log-"),
            type=type,
            effective_at=database_now(session),
            organization_id=organization_id,
            object_id=object_id,
            details=details or None,
            actor_kind=kind,
            actor_user_id=by.user_id if by is not None else None,
            actor_email=by.email if by is not None else who.name,
            actor_key_id=who.key_id,
            actor_key_prefix=who.key_prefix,
            address=who.address,
        )
    )


def list_audit_logs(
    session: Session, wanted: AuditFilter, *, after: str | None, limit: int, before: str | None = None
) -> Page[AuditLog]:
    """A page of the log, newest first: from just behind `after`, or else up to just ahead of `before`."""
    found = Page.of(queries.page(session, wanted, after=after, before=before, limit=limit + 1), limit)
    return replace(found, rows=found.rows[::-1]) if before is not None and after is None else found


def forget_old(session: Session, settings: Settings) -> int:
    """Drop some of what is older than the log is kept; returns how many."""
    if settings.audit_log_retention_seconds is None:
        return 0
    moment = database_now(session) - timedelta(seconds=settings.audit_log_retention_seconds)
    return queries.delete_before(session, moment, FORGOTTEN_AT_ONCE)
