"""SQL of workers, programs and sweeps."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.fleet.models import ProgramRow, ProgramStatus, SweepRow, WorkerRow


def alive(session: Session, since: datetime) -> Sequence[WorkerRow]:
    """Workers heard of since then and not stopped, oldest first."""
    query = select(WorkerRow).where(WorkerRow.heartbeat_at >= since, WorkerRow.stopped_at.is_(None))
    return session.scalars(query.order_by(WorkerRow.id)).all()


def reported(session: Session, since: datetime, limit: int) -> Sequence[WorkerRow]:
    """Workers heard of since then, stopped or not, the newest reports first."""
    query = select(WorkerRow).where(WorkerRow.heartbeat_at >= since)
    return session.scalars(query.order_by(WorkerRow.heartbeat_at.desc()).limit(limit)).all()


def programs(session: Session) -> Sequence[ProgramRow]:
    """All supervised programs, by machine and name."""
    return session.scalars(select(ProgramRow).order_by(ProgramRow.hostname, ProgramRow.name)).all()


def program_of_process(session: Session, hostname: str, process_id: int) -> ProgramRow | None:
    """The supervised program that runs as this process."""
    query = select(ProgramRow).where(ProgramRow.hostname == hostname, ProgramRow.process_id == process_id)
    return session.scalars(query).first()


def requested_starts(session: Session, hostname: str) -> Sequence[str]:
    """Names of a machine's drained programs that were asked to start again."""
    return session.scalars(
        select(ProgramRow.name).where(
            ProgramRow.hostname == hostname,
            ProgramRow.status == ProgramStatus.DRAINED,
            ProgramRow.start_requested_at.is_not(None),
        )
    ).all()


def forget_programs(session: Session, hostname: str) -> None:
    """Delete what a machine's supervisor has said."""
    session.execute(delete(ProgramRow).where(ProgramRow.hostname == hostname))


def delete_workers(session: Session, heard_before: datetime) -> None:
    """Drop workers not heard of since then, and their devices: a job names its worker only while that holds it."""
    session.execute(
        delete(WorkerRow).where(WorkerRow.heartbeat_at < heard_before).execution_options(synchronize_session=False)
    )


def last_sweep(session: Session) -> SweepRow | None:
    """The newest finished sweep."""
    return session.scalars(select(SweepRow).order_by(SweepRow.finished_at.desc()).limit(1)).first()
