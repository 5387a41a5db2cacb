"""What has become of all jobs so far, counted as it happens: metrics that no deleted job and no restart takes back."""

from sqlalchemy.orm import Session

from core.db.upsert import insert_or_ignore
from core.jobs.models import Job, JobTally, TallyKind

__all__ = ["BOUNDS_SECONDS", "ended", "lost_lease", "waited"]

# Upper bounds of the buckets that times are counted in; a bucket more is for what takes longer.
BOUNDS_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)


def waited(session: Session, job: Job, seconds: float) -> None:
    """A worker has claimed a job that waited so long in the queue."""
    _observe(_row(session, TallyKind.WAITED, method=job.setup["method"]), seconds)


def ended(session: Session, job: Job, code: str) -> None:
    """A job has ended with the code of its error, or with none; where it ran, with the device time it used."""
    _row(session, TallyKind.ENDED, status=job.status.value, code=code).count += 1
    if job.started_at is not None:
        row = _row(session, TallyKind.RAN, method=job.setup["method"], status=job.status.value)
        _observe(row, job.used_seconds)


def lost_lease(session: Session) -> None:
    """A worker has not renewed its lease in time."""
    _row(session, TallyKind.LOST_LEASE).count += 1


def _row(session: Session, kind: TallyKind, *, method: str = "", status: str = "", code: str = "") -> JobTally:
    """The row of these labels, held until the transaction ends."""
    key = {"kind": kind, "method": method, "status": status, "code": code}
    insert_or_ignore(session, JobTally, **key)
    return session.get_one(JobTally, key, with_for_update=True, populate_existing=True)


def _observe(row: JobTally, seconds: float) -> None:
    buckets = list(row.buckets or [0] * (len(BOUNDS_SECONDS) + 1))
    buckets[sum(seconds > bound for bound in BOUNDS_SECONDS)] += 1
    row.buckets = buckets
    row.count += 1
    row.seconds += seconds
