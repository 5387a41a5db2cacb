"""SQL of what is still needed, over all the domains that may need it."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session

from core.artifacts.models import Checkpoint, JobArtifact
from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.db.base import utc_now
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.plans.models import Plan


def unfinished_job_using(session: Session, file_id: str) -> str | None:
    """A job that still needs the file."""
    return session.scalars(
        select(Job.id)
        .where(
            or_(Job.training_file_id == file_id, Job.validation_file_id == file_id),
            Job.status.not_in(JobStatus.finished()),
        )
        .limit(1)
    ).first()


def _unneeded() -> ColumnElement[bool]:
    """Whether no unfinished job and no plan that still stands needs the file."""
    of_job = or_(Job.training_file_id == StoredFile.id, Job.validation_file_id == StoredFile.id)
    of_plan = or_(Plan.training_file_id == StoredFile.id, Plan.validation_file_id == StoredFile.id)
    return and_(
        ~exists().where(of_job, Job.status.not_in(JobStatus.finished())),
        ~exists().where(of_plan, Plan.expires_at > utc_now()),
    )


def unneeded_before(session: Session, moment: datetime, limit: int) -> Sequence[tuple[str, str]]:
    """Organizations and ids of the oldest uploaded files from before then that nothing needs."""
    query = (
        select(StoredFile.organization_id, StoredFile.id)
        .where(
            StoredFile.created_at < moment,
            StoredFile.purpose == FilePurpose.FINE_TUNE,
            StoredFile.status != FileStatus.FETCHING,
            _unneeded(),
        )
        .order_by(StoredFile.created_at)
    )
    return [(organization_id, file_id) for organization_id, file_id in session.execute(query.limit(limit))]


def is_unneeded(session: Session, file_id: str) -> bool:
    """Whether the file is there and nothing needs it."""
    return session.scalar(select(StoredFile.id).where(StoredFile.id == file_id, _unneeded())) is not None


def recorded_keys(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of the store's keys that a row names."""
    columns = (Checkpoint.storage_key, JobArtifact.storage_key, StoredFile.storage_key)
    return {
        key for column in columns for key in session.scalars(select(column).where(column.in_(keys))) if key is not None
    }
