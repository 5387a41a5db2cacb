"""What keeps a service's programs running says how they fare; the sweep says when it last ran."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.db.base import utc_now
from core.fleet import queries
from core.fleet.models import ProgramRow, ProgramStatus, SweepRow


@dataclass(frozen=True)
class ProgramState:
    """A supervised program as it is now. `last_ending` says how it ended last, where it did: a code or a signal."""

    name: str
    status: ProgramStatus
    process_id: int | None = None
    restarts: int = 0
    last_ending: str | None = None


def report_programs(session: Session, hostname: str, states: Sequence[ProgramState]) -> None:
    """Replace what was known of this machine's programs."""
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
        )
        for state in states
    )


def programs(session: Session) -> Sequence[ProgramRow]:
    """The programs of every machine that keeps some running, by machine and name."""
    return queries.programs(session)


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
