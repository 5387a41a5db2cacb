"""Forgetting checkpoints of jobs that are long finished."""

from datetime import timedelta

from sqlalchemy.orm import Session

from core.db.session import database_now
from core.jobs import queries
from core.settings import Settings


def expire_checkpoints(session: Session, settings: Settings) -> list[str]:
    """Mark the checkpoints of jobs that finished long ago as gone; returns their keys, to delete after the commit."""
    finished_before = database_now(session) - timedelta(seconds=settings.checkpoint_retention_seconds)
    expired = []
    for checkpoint in queries.stored_checkpoints_of_finished(session, finished_before):
        assert checkpoint.storage_key is not None, "only stored ones are asked for"
        expired.append(checkpoint.storage_key)
        checkpoint.storage_key = None
    return expired
