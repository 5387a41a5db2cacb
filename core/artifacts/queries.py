"""SQL of what jobs put into the store."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.artifacts.models import Checkpoint, JobArtifact


def is_artifact(session: Session, storage_key: str) -> bool:
    """Whether these bytes are among what a job published."""
    return session.scalar(select(JobArtifact.id).where(JobArtifact.storage_key == storage_key).limit(1)) is not None


def stored_bytes(session: Session, organization_id: str) -> int:
    """Bytes of what the organization's jobs published, and of their checkpoints that are kept."""
    published = select(func.coalesce(func.sum(JobArtifact.size_bytes), 0)).where(
        JobArtifact.organization_id == organization_id
    )
    kept = select(func.coalesce(func.sum(Checkpoint.size_bytes), 0)).where(
        Checkpoint.organization_id == organization_id, Checkpoint.storage_key.is_not(None)
    )
    return sum(int(session.scalar(query) or 0) for query in (published, kept))
