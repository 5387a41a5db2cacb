"""SQL of files."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.db import claims

CANDIDATES = 5  # of which another process may just have taken the first


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


def waiting(session: Session, status: FileStatus, now: datetime, passed_over: Collection[str]) -> Sequence[str]:
    """Ids of files in this status that nobody works on: of the organization that was served longest ago, the oldest.

    `passed_over`: organizations whose turn it is not.
    """
    served = (
        select(StoredFile.organization_id, func.max(StoredFile.claimed_until).label("last"))
        .where(StoredFile.organization_id.in_(select(StoredFile.organization_id).where(StoredFile.status == status)))
        .group_by(StoredFile.organization_id)
        .subquery()
    )
    query = (
        select(StoredFile.id)
        .join(served, served.c.organization_id == StoredFile.organization_id)
        .where(
            StoredFile.status == status,
            claims.is_free(StoredFile, now),
            StoredFile.organization_id.not_in(passed_over),
        )
        .order_by(served.c.last.asc().nulls_first(), StoredFile.id)
    )
    return session.scalars(query.limit(CANDIDATES)).all()


def claim(session: Session, file_id: str, status: FileStatus, now: datetime, until: datetime) -> bool:
    """Take the file for work, unless another has it or its status is another by now."""
    is_wanted, attempts = StoredFile.status == status, StoredFile.attempts + 1
    return claims.claim(session, StoredFile, file_id, now, until, is_wanted, attempts=attempts)


def extend_claim(session: Session, file_id: str, until: datetime) -> None:
    """Keep the file for longer."""
    claims.extend(session, StoredFile, file_id, until)


def stored_bytes(session: Session, organization_id: str) -> int:
    """Bytes of the organization's files."""
    query = select(func.coalesce(func.sum(StoredFile.size_bytes), 0)).where(
        StoredFile.organization_id == organization_id
    )
    return int(session.scalar(query) or 0)


def count_files(session: Session, organization_id: str) -> int:
    """How many files the organization has."""
    query = select(func.count()).select_from(StoredFile).where(StoredFile.organization_id == organization_id)
    return int(session.scalar(query) or 0)
