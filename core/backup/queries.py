"""SQL of backups."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import literal, select, update
from sqlalchemy.orm import Session

from core.artifacts.models import Checkpoint, JobArtifact
from core.datasets.models import FileStatus, StoredFile
from core.jobs.models import Job
from core.jobs.states import JobStatus

KEYS_AT_ONCE = 500


@dataclass(frozen=True)
class NamedObject:
    """A stored object as the database names it."""

    key: str
    size_bytes: int
    sha256: str


def named_objects(session: Session) -> list[NamedObject]:
    """Every stored object that a row names, those first that a running service is likely to remove soon."""
    unfinished = Job.status.not_in(JobStatus.finished())
    checkpoints = select(Checkpoint.storage_key, Checkpoint.size_bytes, Checkpoint.sha256).join(
        Job, Job.id == Checkpoint.job_id
    )
    kept = checkpoints.where(Checkpoint.storage_key.is_not(None), Checkpoint.sha256.is_not(None))
    wanted: Sequence[Any] = (
        kept.where(unfinished).order_by(Checkpoint.step.desc()),
        select(StoredFile.storage_key, StoredFile.size_bytes, StoredFile.sha256).where(
            StoredFile.status != FileStatus.FETCHING
        ),
        select(JobArtifact.storage_key, JobArtifact.size_bytes, JobArtifact.sha256),
        kept.where(~unfinished),
    )
    found: dict[str, NamedObject] = {}
    for query in wanted:
        for key, size_bytes, sha256 in session.execute(query):
            if key is not None and sha256 is not None:
                found.setdefault(key, NamedObject(key, size_bytes or 0, sha256))
    return list(found.values())


def forget_checkpoints(session: Session, keys: Collection[str]) -> int:
    """Mark the checkpoints with these keys as gone; returns how many there were."""
    gone = 0
    ordered = sorted(keys)
    for start in range(0, len(ordered), KEYS_AT_ONCE):
        some = ordered[start : start + KEYS_AT_ONCE]
        changed = session.execute(
            update(Checkpoint)
            .where(Checkpoint.storage_key.in_(some))
            .values(storage_key=None)
            .returning(literal(1))
            .execution_options(synchronize_session=False)
        )
        gone += len(changed.all())
    return gone
