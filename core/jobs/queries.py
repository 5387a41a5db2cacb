"""SQL of jobs. Whatever changes a job takes its row first, so that changes of one job happen one after another."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    Select,
    String,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from core.accounts.models import Organization
from core.artifacts.models import Checkpoint, JobArtifact
from core.db.keyset import Order, known_first, sorted_page
from core.db.leases import has_expired
from core.events.models import JobEvent
from core.jobs.models import Job, JobTally
from core.jobs.states import JobSort, JobStatus
from core.paging import Page
from core.plans.models import Plan
from core.registry.models import FineTunedModel


@dataclass(frozen=True)
class MeasuredRun:
    """What a finished run was predicted to need and what it needed, as the tables hold it."""

    setup: dict[str, Any]  # as it ran
    measured: dict[str, Any]
    step_seconds: float | None
    planned_setup: dict[str, Any]
    predicted_bytes: float  # with the correction of then
    memory_ratio: float | None
    predicted_step_seconds: float
    pace_ratio: float | None


def lock_job(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """The job, its row held until the transaction ends; None also where it is another's now and `skip_locked`."""
    query = select(Job).where(Job.id == job_id).with_for_update(of=Job, skip_locked=skip_locked)
    return session.scalars(query.execution_options(populate_existing=True)).first()


def _shown_jobs(organization_id: str) -> Select[Job]:
    return select(Job).where(Job.organization_id == organization_id, Job.deleted_at.is_(None))


def page(
    session: Session, organization_id: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
) -> Sequence[Job]:
    """A page of the organization's jobs, newest first, from just behind `after`. None: those without metadata."""
    query = _shown_jobs(organization_id)
    if metadata is None:
        query = query.where(Job.metadata_.is_(None))
    for key, value in (metadata or {}).items():
        query = query.where(Job.metadata_[key].as_string() == value)
    if after is not None:
        query = query.where(Job.id < after)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit)).all()


def search(
    session: Session,
    organization_id: str,
    *,
    statuses: Collection[JobStatus],
    text: str,
    sort: JobSort,
    is_descending: bool,
    after: str | None,
    limit: int,
) -> Page[Job]:
    """A sorted page of the organization's jobs in these states whose name, model or id holds the text."""
    query = _shown_jobs(organization_id)
    if statuses:
        query = query.where(Job.status.in_(statuses))
    if text:
        columns = (Job.suffix, Job.model, Job.id, Job.fine_tuned_model)
        query = query.where(or_(*(column.icontains(text, autoescape=True) for column in columns)))
    order = Order(_sorted_by(sort, is_descending=is_descending), is_descending)
    return sorted_page(session, query, Job.id, order, after=after, limit=limit)


def _sorted_by(sort: JobSort, *, is_descending: bool) -> ColumnElement[Any] | InstrumentedAttribute[Any]:
    match sort:
        case JobSort.CREATED:
            return Job.id  # ids ascend with time
        case JobSort.NAME:
            return func.lower(func.coalesce(Job.suffix, Job.id), type_=String())
        case JobSort.MODEL:
            return func.lower(Job.model, type_=String())
        case JobSort.STATUS:
            places = {status.value: place for place, status in enumerate(JobStatus)}
            return case(places, value=type_coerce(Job.status, String), else_=len(places))
        case JobSort.STEPS:
            return Job.step
        case JobSort.LOSS:
            return known_first(Job.valid_loss, is_descending=is_descending)
        case JobSort.CREDITS:
            return func.coalesce(Job.charged_credits, Job.quote_credits)


def of_organization(session: Session, organization_id: str, job_ids: Collection[str]) -> dict[str, Job]:
    """Those of these jobs that are the organization's, by id."""
    query = _shown_jobs(organization_id).where(Job.id.in_(job_ids))
    return {job.id: job for job in session.scalars(query)}


def count_of(session: Session, organization_id: str, status: JobStatus) -> int:
    """How many of the organization's jobs are in this state."""
    query = select(func.count()).select_from(Job).where(Job.organization_id == organization_id, Job.status == status)
    return int(session.scalar(query) or 0)


def _running_jobs() -> ScalarSelect[int]:
    """How many jobs of the same organization as the row's are running."""
    other = aliased(Job)
    return (
        select(func.count())
        .select_from(other)
        .where(other.organization_id == Job.organization_id, other.status.in_(JobStatus.leased()))
        .scalar_subquery()
    )


def next_queued(session: Session, device_class: str, free_devices: int, max_running_jobs: int) -> Job | None:
    """The queued job to run next on so many devices of this class, or fewer of them; its row held.

    Fair between organizations: the one with the fewest running jobs comes first, then the oldest job. An organization
    at its limit, or at `max_running_jobs` where it has none of its own, waits.
    """
    running = _running_jobs()
    return session.scalars(
        select(Job)
        .join(Organization, Organization.id == Job.organization_id)
        .where(
            Job.status == JobStatus.QUEUED,
            Job.device_class == device_class,
            Job.device_count <= free_devices,
            running < func.coalesce(Organization.max_running_jobs, max_running_jobs),
        )
        .order_by(running, Job.id)
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    ).first()


@dataclass(frozen=True)
class Waiting:
    """A queued job and how long it is predicted to take."""

    id: str
    predicted_seconds: float


def waiting_line(session: Session, device_class: str) -> Iterator[Waiting]:
    """The queued jobs of this class in the order of `next_queued`, if nothing else came and nothing finished."""
    running = _running_jobs()
    turn = running + func.row_number().over(partition_by=Job.organization_id, order_by=Job.id)
    query = (
        select(Job.id, Plan.plan[("quote", "predicted_seconds")].as_float())
        .join(Plan, Plan.id == Job.plan_id)
        .where(Job.status == JobStatus.QUEUED, Job.device_class == device_class)
        .order_by(turn, Job.id)
    )
    for job_id, seconds in session.execute(query):
        yield Waiting(job_id, float(seconds))


def running_until(session: Session, device_class: str) -> Sequence[datetime | None]:
    """When each running job of this class is expected to finish; None where that is not known yet."""
    query = select(Job.estimated_finish_at).where(Job.status.in_(JobStatus.leased()), Job.device_class == device_class)
    return session.scalars(query).all()


def queued(session: Session) -> Sequence[tuple[str, str]]:
    """Ids and device classes of all queued jobs, oldest first."""
    query = select(Job.id, Job.device_class).where(Job.status == JobStatus.QUEUED).order_by(Job.id)
    return [(job_id, device_class) for job_id, device_class in session.execute(query)]


def measured_runs(session: Session, device_class: str, limit: int) -> Sequence[MeasuredRun]:
    """The newest finished jobs of a device class whose memory was measured, newest first."""
    rows = session.execute(
        select(
            Job.setup,
            Job.memory_measured,
            Job.step_seconds,
            Plan.plan["setup"],
            Plan.plan[("memory", "device_bytes")].as_float(),
            Plan.plan[("memory", "correction", "ratio")].as_float(),
            Plan.plan[("speed", "step_seconds")].as_float(),
            Plan.plan[("speed", "pace", "ratio")].as_float(),
        )
        .join(Plan, Plan.id == Job.plan_id)
        .where(Job.status == JobStatus.SUCCEEDED, Job.device_class == device_class, Job.memory_measured.is_not(None))
        .order_by(Job.id.desc())
        .limit(limit)
    )
    return [MeasuredRun(*row) for row in rows]


def newest_succeeded(session: Session, device_class: str) -> str | None:
    """The id of the newest job of a device class that succeeded."""
    query = select(Job.id).where(Job.status == JobStatus.SUCCEEDED, Job.device_class == device_class)
    return session.scalar(query.order_by(Job.id.desc()).limit(1))


def expired_leases(session: Session, now: datetime) -> Sequence[str]:
    """Ids of jobs whose worker has not renewed its lease in time."""
    query = select(Job.id).where(Job.status.in_(JobStatus.leased()), has_expired(Job, now))
    return session.scalars(query).all()


def leased(session: Session) -> Sequence[Job]:
    """All jobs that workers hold, their rows held."""
    return session.scalars(select(Job).where(Job.status.in_(JobStatus.leased())).with_for_update(of=Job)).all()


def count_by_status(session: Session) -> dict[JobStatus, int]:
    """How many jobs there are in each state."""
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
    return {JobStatus(status): int(count) for status, count in rows}


@dataclass(frozen=True)
class Queue:
    """The queued jobs of a device class."""

    device_class: str
    length: int
    oldest_queued_at: datetime


def queues(session: Session) -> Sequence[Queue]:
    """The queue of each device class that has one."""
    oldest = func.min(func.coalesce(Job.queued_at, Job.created_at))
    query = select(Job.device_class, func.count(), oldest).where(Job.status == JobStatus.QUEUED)
    return [Queue(*row) for row in session.execute(query.group_by(Job.device_class))]


def tallies(session: Session) -> Sequence[JobTally]:
    """What has become of all jobs so far: a row for each method, status and code there was."""
    return session.scalars(select(JobTally)).all()


def checkpoints(
    session: Session, job_id: str, *, after_step: int | None = None, limit: int | None = None
) -> Sequence[Checkpoint]:
    """A job's checkpoints, newest first: all, or a page of them."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    if after_step is not None:
        query = query.where(Checkpoint.step < after_step)
    return session.scalars(query.order_by(Checkpoint.step.desc()).limit(limit)).all()


def checkpoints_by_id(session: Session, checkpoint_ids: Collection[str]) -> dict[str, Checkpoint]:
    """These checkpoints by id."""
    query = select(Checkpoint).where(Checkpoint.id.in_(checkpoint_ids))
    return {checkpoint.id: checkpoint for checkpoint in session.scalars(query)}


def stored_checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """The checkpoints that can still be resumed from, newest first."""
    return session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.storage_key.is_not(None))
        .order_by(Checkpoint.step.desc())
    ).all()


def stored_checkpoints_of_finished(session: Session, finished_before: datetime) -> Sequence[Checkpoint]:
    """The checkpoints still in the store of jobs that finished before then, but for published ones."""
    return session.scalars(
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Checkpoint.storage_key.is_not(None),
            Job.status.in_(JobStatus.finished()),
            Job.finished_at < finished_before,
            ~exists().where(FineTunedModel.checkpoint_id == Checkpoint.id, FineTunedModel.deleted_at.is_(None)),
        )
    ).all()


def artifacts(session: Session, job_id: str) -> Sequence[JobArtifact]:
    """What a job published, adapter first."""
    return session.scalars(select(JobArtifact).where(JobArtifact.job_id == job_id).order_by(JobArtifact.position)).all()


def delete_outputs(session: Session, job_id: str) -> None:
    """Drop the rows of a job's checkpoints and of what it published."""
    session.execute(delete(Checkpoint).where(Checkpoint.job_id == job_id))
    delete_artifacts(session, job_id)


def delete_artifacts(session: Session, job_id: str) -> None:
    """Drop the rows of what a job published."""
    session.execute(delete(JobArtifact).where(JobArtifact.job_id == job_id))


def with_artifacts_before(session: Session, moment: datetime, limit: int) -> Sequence[str]:
    """Ids of jobs that finished before then and still have what they published."""
    query = select(Job.id).where(Job.finished_at < moment, exists().where(JobArtifact.job_id == Job.id))
    return session.scalars(query.order_by(Job.finished_at).limit(limit)).all()


def with_events_before(session: Session, moment: datetime, limit: int) -> Sequence[str]:
    """Ids of jobs that finished before then and still have events."""
    query = select(Job.id).where(Job.finished_at < moment, exists().where(JobEvent.job_id == Job.id))
    return session.scalars(query.order_by(Job.finished_at).limit(limit)).all()
