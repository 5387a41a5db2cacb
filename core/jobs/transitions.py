"""The one function that changes a job's status, and says so in an event and in the log."""

from sqlalchemy.orm import Session

from core.db import leases
from core.db.session import database_now
from core.errors import ConflictError
from core.events import service as events
from core.events.models import EventLevel
from core.jobs import trail
from core.jobs.models import Job
from core.jobs.states import JobStatus, can_move
from core.queue.messages import RUN_JOB, Nudge, enqueue_after_commit, training_queue


def move(session: Session, job: Job, target: JobStatus, message: str, *, level: EventLevel = EventLevel.INFO) -> None:
    """Move a job, whose row the caller holds, to `target`. Raises ConflictError for a move the table lacks."""
    if not can_move(job.status, target):
        raise ConflictError(
            f"The job {job.id} is {job.status} and cannot become {target}.", code="invalid_job_state", param="job_id"
        )
    source, worker = job.status, job.worker_id
    job.status = target
    if target is JobStatus.QUEUED:
        job.queued_at = database_now(session)
        enqueue_after_commit(session, Nudge(RUN_JOB, training_queue(job.device_class), job.id))
    if target not in JobStatus.leased():
        leases.release(job)
        job.phase = None
    if target.is_finished:
        job.finished_at = database_now(session)
        job.estimated_finish_at = None
    events.append(session, job.id, message, level=level)
    if not target.is_finished:  # an end is logged with its cost, by `core.jobs.settlement`
        trail.moved(session, job, source, worker, message)
