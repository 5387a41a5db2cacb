"""What keeps a service's programs running says how they fare; the sweep says when it last ran."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.errors import ConflictError, NotFoundError
from core.fleet import queries
from core.fleet.models import ProgramRow, ProgramStatus, SweepRow, WorkerRow


@dataclass(frozen=True)
class ProgramState:
    """A supervised program as it is now. `last_ending` says how it ended last, where it did: a code or a signal."""

    name: str
    status: ProgramStatus
    process_id: int | None = None
    restarts: int = 0
    last_ending: str | None = None


def report_programs(session: Session, hostname: str, states: Sequence[ProgramState]) -> None:
    """Replace what was known of this machine's programs; a drained one's request to start again stays."""
    requested = {name: utc_now() for name in queries.requested_starts(session, hostname)}
    queries.forget_programs(session, hostname)
    now = utc_now()
    session.add_all(
        ProgramRow(
            hostname=hostname,
            name=state.name,
            status=state.status,
            process_id=state.process_id,
            restarts=state.restarts,
            last_ending=state.last_ending,
            changed_at=now,
            start_requested_at=requested.get(state.name) if state.status is ProgramStatus.DRAINED else None,
        )
        for state in states
    )


def programs(session: Session) -> Sequence[ProgramRow]:
    """The programs of every machine that keeps some running, by machine and name."""
    return queries.programs(session)


def is_supervised(session: Session, worker: WorkerRow) -> bool:
    """Whether a worker's own service can start it again after a drain."""
    return queries.program_of_process(session, worker.hostname, worker.process_id) is not None


def request_start(session: Session, hostname: str, name: str) -> None:
    """Ask the supervisor of a drained program to start it again. Raises NotFoundError and ConflictError."""
    row = session.get(ProgramRow, (hostname, name), with_for_update=True)
    if row is None:
        raise NotFoundError(f"No program {name!r} is kept running on {hostname}.", code="program_not_found")
    if row.status is not ProgramStatus.DRAINED:
        raise ConflictError(f"{name} is {row.status}; only a drained program is started again.", code="not_drained")
    row.start_requested_at = row.start_requested_at or utc_now()
    audit.record(session, AuditType.WORKER_STARTED, organization_id=None, object_id=name, hostname=hostname)


def requested_starts(session: Session, hostname: str) -> Sequence[str]:
    """Names of this machine's drained programs that were asked to start again."""
    return queries.requested_starts(session, hostname)


def report_sweep(session: Session, hostname: str, seconds: float) -> None:
    """A sweep has just ended on this machine, and took so long."""
    row = session.get(SweepRow, hostname)
    if row is None:
        session.add(SweepRow(hostname=hostname, finished_at=utc_now(), seconds=seconds))
    else:
        row.finished_at, row.seconds = utc_now(), seconds


def last_sweep(session: Session) -> SweepRow | None:
    """The newest sweep of any machine; None where none has ended yet."""
    return queries.last_sweep(session)
