"""What the log says of a job: one line for each thing that happened to it, once the transaction is committed."""

from typing import Any

from sqlalchemy.orm import Session

from core.db.lines import say_after_commit
from core.jobs.models import Job
from core.jobs.states import JobStatus

__all__ = ["moved", "say"]

_S = JobStatus
_EVENTS = {
    (_S.VALIDATING_FILES, _S.QUEUED): "job_created",
    (_S.QUEUED, _S.RUNNING): "job_claimed",
    (_S.RUNNING, _S.QUEUED): "job_requeued",
    (_S.PAUSED, _S.QUEUED): "job_resumed",
}
_EVENTS_OF_TARGETS = {
    _S.PAUSING: "job_pause_requested",
    _S.PAUSED: "job_paused",
    _S.CANCELLING: "job_cancel_requested",
}


def say(
    session: Session, job: Job, event: str, *, level: str = "info", worker: str | None = None, **facts: Any
) -> None:
    """Log `event` with the job, its organization and its worker: the one that holds it, unless another is given."""
    worker = worker or job.worker_id
    if worker is not None:
        facts["worker"] = worker
    say_after_commit(session, event, level=level, job_id=job.id, organization=job.organization_id, **facts)


def moved(session: Session, job: Job, source: JobStatus, worker: str | None, message: str) -> None:
    """Log a job's move from `source`, when `worker` held it, to the status it has now, which is not its end."""
    event = _EVENTS.get((source, job.status)) or _EVENTS_OF_TARGETS[job.status]
    facts: dict[str, Any] = {}
    if event == "job_created":
        facts = {"model": job.model, "device_class": job.device_class, "quote_credits": job.quote_credits}
    elif event == "job_claimed":
        facts = {"device_class": job.device_class, "step": job.step, "crashes": job.attempts}
    elif event == "job_requeued":
        facts = {"level": "warning", "reason": message, "step": job.step}
    say(session, job, event, worker=worker, **facts)
