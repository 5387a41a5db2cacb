"""Appending events and reading them forwards or backwards."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from core.errors import InvalidRequestError
from core.events import queries
from core.events.models import EventLevel, EventType, JobEvent
from core.ids import new_id
from core.queue.messages import Wake, enqueue_after_commit, job_channel

LONGEST_MESSAGE = 2000


def append(
    session: Session,
    job_id: str,
    message: str,
    *,
    type: EventType = EventType.MESSAGE,
    level: EventLevel = EventLevel.INFO,
    data: Mapping[str, Any] | None = None,
) -> JobEvent:
    """Add an event and wake whoever follows the job. The caller holds the job's row, which orders writers."""
    event = JobEvent(
        id=new_id("ftevent-"),
        job_id=job_id,
        sequence=queries.last_sequence(session, job_id) + 1,
        type=type,
        level=level,
        message=message[:LONGEST_MESSAGE],
        data=dict(data) if data is not None else None,
    )
    session.add(event)
    session.flush()
    enqueue_after_commit(session, Wake(job_channel(job_id)))
    return event


def page(session: Session, job_id: str, *, after: str | None, limit: int) -> Sequence[JobEvent]:
    """Events of a job, newest first, from just behind the event `after`. Raises InvalidRequestError."""
    return queries.before(session, job_id, _sequence(session, job_id, after), limit)


def following(session: Session, job_id: str, *, last_id: str | None, limit: int = 500) -> Sequence[JobEvent]:
    """Events of a job, oldest first, that came after the event `last_id`. Raises InvalidRequestError."""
    return queries.since(session, job_id, _sequence(session, job_id, last_id) or 0, limit)


def _sequence(session: Session, job_id: str, event_id: str | None) -> int | None:
    if event_id is None:
        return None
    sequence = queries.sequence_of(session, job_id, event_id)
    if sequence is None:
        raise InvalidRequestError(f"{event_id!r} is not an event of this job.", param="after")
    return sequence
