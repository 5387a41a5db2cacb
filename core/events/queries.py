"""SQL of events."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from core.events.models import EventType, JobEvent
from planner.objectives import TRAIN_LOSS, VALID_LOSS


def last_sequence(session: Session, job_id: str) -> int:
    """The sequence of the job's newest event; 0 where it has none."""
    return int(session.scalar(select(func.max(JobEvent.sequence)).where(JobEvent.job_id == job_id)) or 0)


def sequence_of(session: Session, job_id: str, event_id: str) -> int | None:
    """The sequence of one event of the job."""
    return session.scalar(select(JobEvent.sequence).where(JobEvent.id == event_id, JobEvent.job_id == job_id))


def since(session: Session, job_id: str, sequence: int, limit: int) -> Sequence[JobEvent]:
    """Events behind `sequence`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.sequence > sequence)
    return session.scalars(query.order_by(JobEvent.sequence).limit(limit)).all()


def before(session: Session, job_id: str, sequence: int | None, limit: int) -> Sequence[JobEvent]:
    """Events in front of `sequence`, newest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    if sequence is not None:
        query = query.where(JobEvent.sequence < sequence)
    return session.scalars(query.order_by(JobEvent.sequence.desc()).limit(limit)).all()


def metrics(session: Session, job_id: str) -> list[dict[str, Any]]:
    """The numbers of every step and evaluation, in the order in which they were recorded."""
    query = select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.type == EventType.METRICS)
    return [data for data in session.scalars(query.order_by(JobEvent.sequence)) if data is not None]


def messages(session: Session, job_id: str, limit: int) -> Sequence[JobEvent]:
    """The newest sentences about the job, newest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == EventType.MESSAGE)
    return session.scalars(query.order_by(JobEvent.sequence.desc()).limit(limit)).all()


def metrics_since(session: Session, job_id: str, step: int) -> set[tuple[int, bool]]:
    """The steps from `step` on whose numbers are recorded, each with whether they are an evaluation's.

    A step that was skipped has none: it may be taken again after a divergence.
    Reads backwards from the newest event, because what is asked for is almost always the last few steps.
    """
    found: set[tuple[int, bool]] = set()
    query = (
        select(JobEvent.data)
        .where(JobEvent.job_id == job_id, JobEvent.type == EventType.METRICS)
        .order_by(JobEvent.sequence.desc())
        .execution_options(yield_per=100)
    )
    with session.execute(query) as rows:
        for (data,) in rows:
            if data["step"] < step:
                break
            if data.get(TRAIN_LOSS) is not None or data.get(VALID_LOSS) is not None:
                found.add((data["step"], data.get(VALID_LOSS) is not None))
    return found


def delete_of(session: Session, job_id: str) -> None:
    """Drop all events of a job."""
    session.execute(delete(JobEvent).where(JobEvent.job_id == job_id))
