"""What a worker does with a job: claim it, keep it, write to it, let go of it.

The database decides who runs a job, and its clock tells how long: those of the machines may be apart. A claim sets a
fresh token; every later write takes the job's row and compares tokens first, so that a worker that was taken for dead,
or really was, can never write over its successor.
"""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.db import leases
from core.db.leases import Holder
from core.db.serialization import serialize
from core.db.session import database_now
from core.errors import ErrorBody, StaleLeaseError
from core.events import service as events
from core.events.models import EventLevel
from core.jobs import queries, tallies, trail
from core.jobs.models import Job
from core.jobs.settlement import WORN_OUT, end, is_charged
from core.jobs.states import JobStatus
from core.jobs.transitions import move
from core.settings import Settings
from planner.setup import TrainingSetup


@dataclass(frozen=True)
class Lease:
    """The right to write to one job."""

    job_id: str
    token: str

    def storage_prefix(self, organization_id: str) -> str:
        """Where in the store this lease's objects lie: apart from its successor's, which it could overwrite else."""
        return f"{organization_id}/jobs/{self.job_id}/{self.token}"


def claim_next(session: Session, settings: Settings, holder: Holder, device_class: str) -> tuple[Lease, Job] | None:
    """Claim the queued job that is next for this class of device and fits the holder's free ones; None without one.

    It gets all the devices that it asks for at once, or waits.
    """
    job = queries.next_queued(session, device_class, len(holder.free), settings.max_running_jobs)
    if job is None:
        return None
    now = database_now(session)
    message = "Fine-tuning job goes on" if job.started_at is not None else "Fine-tuning job started"
    token = leases.grant(session, job, holder, job.device_count, settings.lease_seconds)
    job.started_at = job.started_at or now
    tallies.waited(session, job, max(0.0, (now - (job.queued_at or job.created_at)).total_seconds()))
    move(session, job, JobStatus.RUNNING, message)
    return Lease(job.id, token), job


def hold_job(session: Session, lease: Lease) -> Job:
    """The leased job, its row held until the transaction ends. Raises StaleLeaseError."""
    job = queries.lock_job(session, lease.job_id)
    if job is None or not leases.is_held_with(job, lease.token) or job.status not in JobStatus.leased():
        raise StaleLeaseError(f"The lease on {lease.job_id} is no longer this worker's.")
    return job


def renew(session: Session, settings: Settings, lease: Lease, used_seconds: float) -> JobStatus:
    """Keep the lease and account for device time; returns the status, which says whether to stop.

    `used_seconds` is what this attempt added since the last call, charged unless it repeats what was lost to the
    service. Raises StaleLeaseError.
    """
    job = hold_job(session, lease)
    leases.renew(session, job, settings.lease_seconds)
    account(job, used_seconds)
    return job.status


def account(job: Job, used_seconds: float) -> None:
    """Add the time of each of its devices to a job whose row is held."""
    if job.repeats_until_step is None:
        job.used_seconds += used_seconds * job.device_count


def step_down(session: Session, lease: Lease, setup: TrainingSetup, message: str) -> None:
    """Record a smaller micro-batch, with which the run goes on from its last checkpoint. Raises StaleLeaseError."""
    job = hold_job(session, lease)
    _lose_time(job)
    job.setup = serialize(setup)
    events.append(session, job.id, message, level=EventLevel.WARN)
    trail.say(session, job, "micro_batch_lowered", level="warning", message=message)


def lower_learning_rate(session: Session, lease: Lease, factor: float, message: str) -> bool:
    """Go on from the last checkpoint at `factor` times the planned rate, once in a job's life; False if it was.

    Raises StaleLeaseError.
    """
    job = hold_job(session, lease)
    if job.learning_rate_factor != 1.0:
        return False
    job.learning_rate_factor = factor
    events.append(session, job.id, message, level=EventLevel.WARN)
    trail.say(session, job, "learning_rate_lowered", level="warning", message=message)
    return True


def start_again(session: Session, settings: Settings, lease: Lease, cause: str) -> bool:
    """Count a crash after the child ended without a word; False where the job failed by it, or is to stop.

    `cause` completes "The training process …".
    Raises StaleLeaseError.
    """
    job = hold_job(session, lease)
    if job.status is not JobStatus.RUNNING:
        _release(session, job, cause)
        return False
    if not _count_crash(session, settings, job):
        return False
    _lose_time(job)
    message = f"The training process {cause}; going on from the last checkpoint{_crashes(settings, job)}"
    events.append(session, job.id, message, level=EventLevel.WARN)
    trail.say(session, job, "training_restarts", level="warning", cause=cause, step=job.step, crashes=job.attempts)
    return True


def release(session: Session, lease: Lease, reason: str) -> None:
    """End a lease without an end of the job: as its owner asked, or back into the queue. Raises StaleLeaseError."""
    _release(session, hold_job(session, lease), reason)


def fail(session: Session, lease: Lease, error: ErrorBody) -> None:
    """The job cannot go on. What it costs follows from the error (`end`). Raises StaleLeaseError."""
    job = hold_job(session, lease)
    if job.status is JobStatus.CANCELLING:
        _release(session, job, error.message)
    else:
        fail_job(session, job, error)


def fail_job(session: Session, job: Job, error: ErrorBody) -> None:
    """Fail a job whose row is held, and settle its credits."""
    job.error = serialize(error)
    cost = " The device time it used is charged." if is_charged(session, job, error) else ""
    end(session, job, JobStatus.FAILED, f"The job failed: {error.message}{cost}", level=EventLevel.ERROR)


def reclaim_expired(session: Session, settings: Settings) -> list[str]:
    """Take jobs from workers that stopped renewing; returns their ids."""
    reclaimed = []
    for job_id in queries.expired_leases(session, database_now(session)):
        job = queries.lock_job(session, job_id, skip_locked=True)
        if job is None or job.status not in JobStatus.leased():
            continue
        if job.lease_expires_at is not None and job.lease_expires_at > database_now(session):
            continue
        tallies.lost_lease(session)
        trail.say(session, job, "lease_expired", level="warning", step=job.step)
        if job.status is not JobStatus.RUNNING:
            _lose_time(job)
            _release(session, job, "Its worker was lost")
        elif _count_crash(session, settings, job):
            _release(session, job, f"Its worker was lost; going on from the last checkpoint{_crashes(settings, job)}")
        reclaimed.append(job_id)
    return reclaimed


def void_all(session: Session, reason: str) -> int:
    """End every lease of a database that was put back: its workers are gone, by no fault of the jobs. Says how many."""
    leased = queries.leased(session)
    for job in leased:
        if job.status is not JobStatus.RUNNING:
            _lose_time(job)
        _release(session, job, reason)
    return len(leased)


def _release(session: Session, job: Job, reason: str) -> None:
    match job.status:
        case JobStatus.CANCELLING:
            end(session, job, JobStatus.CANCELLED, "Cancelled by its owner")
        case JobStatus.PAUSING:
            move(session, job, JobStatus.PAUSED, "Paused after a checkpoint")
        case _:
            _lose_time(job)
            move(session, job, JobStatus.QUEUED, reason, level=EventLevel.WARN)


def _lose_time(job: Job) -> None:
    """An attempt was lost to the service: charge what led to the newest step, and nothing again until a newer one."""
    job.used_seconds = min(job.used_seconds, job.useful_seconds)
    job.repeats_until_step = job.step


def _count_crash(session: Session, settings: Settings, job: Job) -> bool:
    """Count a crash or a lost lease of a running job; False where it was one too many, and the job has failed."""
    job.attempts += 1
    if job.attempts < settings.max_attempts:
        return True
    error = ErrorBody(
        message=f"The job's workers or training processes died {job.attempts} times since its last new checkpoint, so "
        "it is not started again. See the events for the steps reached.",
        type="server_error",
        param=None,
        code=WORN_OUT,
    )
    _lose_time(job)
    fail_job(session, job, error)
    return False


def _crashes(settings: Settings, job: Job) -> str:
    return f" (crash {job.attempts} of at most {settings.max_attempts} without a new checkpoint)"
