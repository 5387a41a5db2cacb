"""SQL of files."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.jobs.models import Job, JobArtifact
from core.jobs.states import JobStatus


def file_of(session: Session, organization_id: str, file_id: str) -> StoredFile | None:
    """The organization's file with this id."""
    file = session.get(StoredFile, file_id)
    return file if file is not None and file.organization_id == organization_id else None


def page(
    session: Session, organization_id: str, *, purpose: FilePurpose | None, after: str | None, limit: int, newest: bool
) -> Sequence[StoredFile]:
    """A page of the organization's files by id, from just behind `after`."""
    query = select(StoredFile).where(StoredFile.organization_id == organization_id)
    if purpose is not None:
        query = query.where(StoredFile.purpose == purpose)
    if after is not None:
        query = query.where(StoredFile.id < after if newest else StoredFile.id > after)
    return session.scalars(query.order_by(StoredFile.id.desc() if newest else StoredFile.id).limit(limit)).all()


def file_from_hub(session: Session, organization_id: str, hub_key: str) -> StoredFile | None:
    """The organization's file of this source."""
    query = select(StoredFile).where(StoredFile.organization_id == organization_id, StoredFile.hub_key == hub_key)
    return session.scalars(query).first()


def unfetched(session: Session, limit: int) -> Sequence[str]:
    """Ids of files that still wait to be fetched, oldest first."""
    query = select(StoredFile.id).where(StoredFile.status == FileStatus.FETCHING).order_by(StoredFile.id)
    return session.scalars(query.limit(limit)).all()


def uninspected(session: Session, limit: int) -> Sequence[str]:
    """Ids of files that still wait for their inspection, oldest first."""
    query = select(StoredFile.id).where(StoredFile.status == FileStatus.UPLOADED).order_by(StoredFile.id)
    return session.scalars(query.limit(limit)).all()


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


def stored_bytes(session: Session, organization_id: str) -> int:
    """Bytes of the organization's files and of what its jobs published."""
    files = select(func.coalesce(func.sum(StoredFile.size_bytes), 0)).where(
        StoredFile.organization_id == organization_id
    )
    published = (
        select(func.coalesce(func.sum(JobArtifact.size_bytes), 0))
        .join(Job, Job.id == JobArtifact.job_id)
        .where(Job.organization_id == organization_id)
    )
    return int(session.scalar(files) or 0) + int(session.scalar(published) or 0)
