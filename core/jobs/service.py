"""What an owner does with jobs: create, look, cancel, pause, resume."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Any

from sqlalchemy.orm import Session

from core.accounts.limits import check_limit, lock_limits
from core.accounts.service import Actor
from core.artifacts.models import Checkpoint, JobArtifact
from core.audit import service as audit
from core.audit.models import AuditType
from core.datasets import queries as file_queries
from core.db.base import utc_now
from core.db.serialization import serialize
from core.errors import ConflictError, InvalidRequestError, NotFoundError
from core.events import queries as event_queries
from core.events import service as events
from core.events.models import EventLevel
from core.idempotency.service import CreateRequest, once
from core.ids import new_id
from core.jobs import queries, trail
from core.jobs.models import Job
from core.jobs.settlement import end
from core.jobs.states import JobSort, JobStatus
from core.jobs.transitions import move
from core.ledger import codes
from core.ledger import service as ledger
from core.paging import Page
from core.plans import service as plans
from core.plans.models import Plan
from core.plans.service import PlanDraft
from core.queue.messages import Wake, enqueue_after_commit, job_channel
from core.registry import queries as registry_queries
from core.runtime import Runtime
from core.settings import Settings
from planner.wording import METHODS, sentence

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class JobRequest:
    """What a person or program asks to have run. Exactly one of `draft` and `plan_id` says what."""

    draft: PlanDraft | None = None
    plan_id: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: Mapping[str, str] | None = None
    integrations: Sequence[Any] | None = None
    credit_code: str | None = None
    max_credits: int | None = None


def create_job(
    session: Session, runtime: Runtime, actor: Actor, request: JobRequest, create_request: CreateRequest
) -> Job:
    """Accept a job: freeze its plan, redeem its code, hold its quote and queue it, all or nothing.

    Raises InsufficientCreditsError, InvalidRequestError for a quote above `max_credits`, ConflictError for a plan
    whose quote has expired, LimitReachedError, and what redeeming a code raises. A retried create returns the first
    job.
    """
    job_id = once(session, create_request, lambda: _create(session, runtime, actor, request).id)
    return get_job(session, actor.organization_id, job_id)


def check_quote(quote_credits: int, max_credits: int | None) -> None:
    """Raise InvalidRequestError for a quote above what the owner is ready to spend; None: whatever it is."""
    if max_credits is not None and quote_credits > max_credits:
        raise InvalidRequestError(
            f"The quote is {quote_credits:,} credits, above your max_credits of {max_credits:,}. Raise it, or ask for "
            "a plan with priority 'economy'.",
            code="quote_above_max_credits",
            param="max_credits",
        )


def _create(session: Session, runtime: Runtime, actor: Actor, request: JobRequest) -> Job:
    _check_queue(session, runtime.settings, actor.organization_id)
    plan = _frozen_plan(session, runtime, actor, request)
    check_quote(plan.quote_credits, request.max_credits)
    if request.credit_code:
        codes.redeem_for_job(session, actor.organization_id, request.credit_code)
    plan.is_used = True
    chosen = plans.training_plan(plan)
    job = Job(
        id=new_id("ftjob-"),
        organization_id=actor.organization_id,
        user_id=actor.user_id,
        model=plan.model,
        training_file_id=plan.training_file_id,
        validation_file_id=plan.validation_file_id,
        suffix=request.suffix,
        seed=request.seed if request.seed is not None else SystemRandom().randint(0, MAX_SEED),
        metadata_=dict(request.metadata) if request.metadata is not None else None,
        integrations=list(request.integrations) if request.integrations is not None else None,
        plan_id=plan.id,
        plan=plan,
        setup=serialize(chosen.setup),
        device_class=chosen.device.device_class,
        device_count=chosen.device_count,
        quote_credits=plan.quote_credits,
        status=JobStatus.VALIDATING_FILES,
    )
    ledger.hold(session, actor.organization_id, job.id, plan.quote_credits)
    session.add(job)
    session.flush()
    _note(session, AuditType.JOB_CREATED, job, model=job.model, quote_credits=job.quote_credits)
    events.append(session, job.id, f"Created fine-tuning job: {job.id}")
    events.append(session, job.id, "Files validated: " + sentence(chosen.reasons[0]))
    for notice in plans.notices_of(plan):
        events.append(session, job.id, str(notice), level=EventLevel.WARN)
    move(
        session,
        job,
        JobStatus.QUEUED,
        f"Planned {METHODS[chosen.setup.method]} on {chosen.device.name}, quoted at no more than "
        f"{plan.quote_credits:,} credits; moved to the queue",
    )
    return job


def _check_queue(session: Session, settings: Settings, organization_id: str) -> None:
    limits = lock_limits(session, settings, organization_id)
    queued = queries.count_of(session, organization_id, JobStatus.QUEUED) + 1
    check_limit("queued_jobs", queued, limits.queued_jobs, "Wait until one of its jobs has started, or cancel one.")


def _frozen_plan(session: Session, runtime: Runtime, actor: Actor, request: JobRequest) -> Plan:
    if request.plan_id is not None:
        return plans.standing_plan(session, actor, request.plan_id)
    assert request.draft is not None, "a job needs a draft or a plan id"
    return plans.save_plan(session, runtime, actor, request.draft)


def get_job(session: Session, organization_id: str, job_id: str) -> Job:
    """The organization's job. Raises NotFoundError."""
    job = session.get(Job, job_id)
    if job is None or job.organization_id != organization_id or job.deleted_at is not None:
        raise _not_found(job_id)
    return job


def list_jobs(
    session: Session, organization_id: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
) -> Page[Job]:
    """A page of the organization's jobs, newest first, of those with this metadata; None: with none at all."""
    rows = queries.page(session, organization_id, after=after, limit=limit + 1, metadata=metadata)
    return Page.of(rows, limit)


def search_jobs(
    session: Session,
    organization_id: str,
    *,
    statuses: Collection[JobStatus] = (),
    text: str = "",
    sort: JobSort = JobSort.CREATED,
    is_descending: bool = True,
    after: str | None = None,
    limit: int,
) -> Page[Job]:
    """A sorted page of the organization's jobs in any of these states, or in all, whose name, model or id holds `text`.

    Raises InvalidRequestError for an `after` that is not the `next_after` of a page sorted so.
    """
    return queries.search(
        session,
        organization_id,
        statuses=statuses,
        text=text,
        sort=sort,
        is_descending=is_descending,
        after=after,
        limit=limit,
    )


def list_checkpoints(
    session: Session, organization_id: str, job_id: str, *, after: str | None, limit: int
) -> Page[Checkpoint]:
    """A page of a job's checkpoints, newest first. Raises NotFoundError."""
    get_job(session, organization_id, job_id)
    step = None
    if after is not None:
        last = session.get(Checkpoint, after)
        if last is None or last.job_id != job_id:
            raise InvalidRequestError(f"{after!r} is not a checkpoint of this job.", param="after")
        step = last.step
    return Page.of(queries.checkpoints(session, job_id, after_step=step, limit=limit + 1), limit)


def get_checkpoint(session: Session, organization_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
    """A checkpoint that is still stored. Raises NotFoundError, ConflictError where what led to it was not charged."""
    job = get_job(session, organization_id, job_id)
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None or checkpoint.job_id != job_id:
        raise NotFoundError(
            f"The job {job_id} has no checkpoint {checkpoint_id!r}.", code="checkpoint_not_found", param="checkpoint_id"
        )
    if checkpoint.storage_key is None or checkpoint.sha256 is None:
        raise NotFoundError(
            f"The checkpoint of step {checkpoint.step} is gone: a job keeps its two newest and its best, and those for "
            "some days after it is finished; published ones stay until their model is deleted.",
            code="checkpoint_not_found",
            param="checkpoint_id",
        )
    if job.withholds(checkpoint.step):
        raise ConflictError(
            f"The job {job_id} has failed, and what led to its checkpoint of step {checkpoint.step:,} was not charged, "
            "so that is not given out. Run it again.",
            code="invalid_job_state",
            param="fine_tuning_job_id",
        )
    return checkpoint


def take_checkpoint(session: Session, organization_id: str, job_id: str, checkpoint_id: str) -> Checkpoint:
    """As `get_checkpoint`, for one that is given out: what led to it is charged, however the job fails later."""
    job = hold_own_job(session, organization_id, job_id)
    checkpoint = get_checkpoint(session, organization_id, job_id, checkpoint_id)
    if not job.status.is_finished:
        job.taken_step = max(job.taken_step or 0, checkpoint.step)
    return checkpoint


def list_artifacts(session: Session, organization_id: str, job_id: str) -> Sequence[JobArtifact]:
    """What the job published, adapter first. Raises NotFoundError."""
    get_job(session, organization_id, job_id)
    return queries.artifacts(session, job_id)


def get_artifact(session: Session, organization_id: str, job_id: str, name: str) -> JobArtifact:
    """One artifact by name. Raises NotFoundError."""
    for artifact in list_artifacts(session, organization_id, job_id):
        if artifact.name == name:
            return artifact
    raise NotFoundError(
        f"The job {job_id} has no artifact {name!r}. It publishes them when it succeeds.",
        code="artifact_not_found",
        param="name",
    )


def cancel_job(session: Session, organization_id: str, job_id: str) -> Job:
    """End a job. At once where no worker holds it, else as soon as its worker has let go.

    Raises NotFoundError, ConflictError for a finished job. Cancelling twice is no error.
    """
    job = hold_own_job(session, organization_id, job_id)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    _note(session, AuditType.JOB_CANCELLED, job)
    if job.status in JobStatus.leased():
        move(session, job, JobStatus.CANCELLING, "Cancellation requested; the worker is asked to stop")
        enqueue_after_commit(session, Wake(job_channel(job_id)))
    else:
        end(session, job, JobStatus.CANCELLED, "Cancelled by its owner")
    return job


def pause_job(session: Session, organization_id: str, job_id: str) -> Job:
    """Stop a job after a checkpoint. Raises NotFoundError, ConflictError where it is not queued or running."""
    job = hold_own_job(session, organization_id, job_id)
    if job.status in (JobStatus.PAUSING, JobStatus.PAUSED):
        return job
    if job.status is JobStatus.RUNNING:
        move(session, job, JobStatus.PAUSING, "Pause requested; the worker stops after a checkpoint")
        enqueue_after_commit(session, Wake(job_channel(job_id)))
    else:
        move(session, job, JobStatus.PAUSED, "Paused before it started")
    _note(session, AuditType.JOB_PAUSED, job)
    return job


def resume_job(session: Session, settings: Settings, organization_id: str, job_id: str) -> Job:
    """Queue a paused job again. Raises NotFoundError, ConflictError where it is not paused, LimitReachedError."""
    job = hold_own_job(session, organization_id, job_id)
    if job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        return job
    _check_queue(session, settings, organization_id)
    move(session, job, JobStatus.QUEUED, "Resumed; moved to the queue")
    _note(session, AuditType.JOB_RESUMED, job)
    return job


def delete_job(runtime: Runtime, organization_id: str, job_id: str) -> None:
    """Delete a finished job with all it made: the rows in one transaction, then their bytes.

    Gone are its artifacts, checkpoints, result file, model, events and what its owner wrote to it. What it was and
    cost stays behind the books, which are never rewritten, and so does what the planner measured; its data set is a
    file of its own. Raises NotFoundError, and ConflictError for a job that is not finished.
    """
    for key in runtime.database.run(lambda session: _delete(session, organization_id, job_id)):
        runtime.store.delete(key)


def _delete(session: Session, organization_id: str, job_id: str) -> list[str]:
    job = hold_own_job(session, organization_id, job_id)
    if not job.status.is_finished:
        raise ConflictError(
            f"The job {job_id} is {job.status}. Cancel it, or wait for its end, and delete it then.",
            code="job_not_finished",
            param="fine_tuning_job_id",
        )
    stored = [artifact.storage_key for artifact in queries.artifacts(session, job_id)]
    stored += [row.storage_key for row in queries.stored_checkpoints(session, job_id) if row.storage_key is not None]
    result = file_queries.file_of(session, organization_id, job.result_file_id) if job.result_file_id else None
    if result is not None:
        stored.append(result.storage_key)
        session.delete(result)
    queries.delete_outputs(session, job_id)
    event_queries.delete_of(session, job_id)
    registry_queries.delete_of_job(session, job_id)
    job.suffix = job.metadata_ = job.error = job.fine_tuned_model = job.result_file_id = None
    job.deleted_at = utc_now()
    _note(session, AuditType.JOB_DELETED, job)
    trail.say(session, job, "job_deleted")
    return sorted(set(stored))


def _note(session: Session, type: AuditType, job: Job, **details: Any) -> None:
    audit.record(session, type, organization_id=job.organization_id, object_id=job.id, **details)


def hold_own_job(session: Session, organization_id: str, job_id: str) -> Job:
    """The organization's job, its row held until the transaction ends. Raises NotFoundError."""
    job = queries.lock_job(session, job_id)
    if job is None or job.organization_id != organization_id or job.deleted_at is not None:
        raise _not_found(job_id)
    return job


def _not_found(job_id: str) -> NotFoundError:
    return NotFoundError(f"No fine-tuning job {job_id!r}.", code="job_not_found", param="fine_tuning_job_id")
