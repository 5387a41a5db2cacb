"""Forgetting what jobs left that are long finished: checkpoints, and models and events where the settings say so."""

from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.orm import Session

from core.artifacts.store import ArtifactStore
from core.audit import service as audit
from core.audit.models import AuditType
from core.datasets import queries as file_queries
from core.db.session import database_now
from core.events import queries as event_queries
from core.events import service as events
from core.jobs import queries
from core.registry import queries as registry_queries
from core.runtime import Runtime
from core.settings import Settings

LOOKED_AT_ONCE = 200
TUNED = "ft:"  # how the ids of fine-tuned models begin
DAY_SECONDS = 86400


def expire_checkpoints(session: Session, settings: Settings) -> list[str]:
    """Mark the checkpoints of jobs that finished long ago as gone; returns their keys, to delete after the commit."""
    finished_before = database_now(session) - timedelta(seconds=settings.checkpoint_retention_seconds)
    expired = []
    for checkpoint in queries.stored_checkpoints_of_finished(session, finished_before):
        assert checkpoint.storage_key is not None, "only stored ones are asked for"
        expired.append(checkpoint.storage_key)
        checkpoint.storage_key = None
    return expired


def model_kept_until(settings: Settings, model_id: str, made_at: datetime) -> datetime | None:
    """Until when a model that was made then is kept; None: until somebody deletes it, or a base model."""
    seconds = settings.model_retention_seconds
    return made_at + timedelta(seconds=seconds) if seconds is not None and model_id.startswith(TUNED) else None


def expire_models(runtime: Runtime) -> int:
    """Delete models that are older than they are kept, with their jobs' artifacts and results; returns how many.

    Raises StoreError where the store is away: the rest is deleted another time.
    """
    seconds = runtime.settings.model_retention_seconds
    if seconds is None:
        return 0
    before = runtime.database.run(database_now) - timedelta(seconds=seconds)
    gone = runtime.database.run(lambda session: _expire_models(session, before))
    with runtime.database.read() as session:
        job_ids = queries.with_artifacts_before(session, before, LOOKED_AT_ONCE)
    for job_id in job_ids:
        runtime.database.run(partial(_expire_artifacts, store=runtime.store, job_id=job_id, seconds=seconds))
    return gone


def expire_events(session: Session, settings: Settings) -> int:
    """Drop the events of some of the jobs that finished longer ago than events are kept; returns of how many."""
    if settings.event_retention_seconds is None:
        return 0
    before = database_now(session) - timedelta(seconds=settings.event_retention_seconds)
    job_ids = queries.with_events_before(session, before, LOOKED_AT_ONCE)
    for job_id in job_ids:
        event_queries.delete_of(session, job_id)
    return len(job_ids)


def _expire_models(session: Session, before: datetime) -> int:
    models = registry_queries.made_before(session, before, LOOKED_AT_ONCE)
    for model in models:
        model.deleted_at = database_now(session)
        audit.record(session, AuditType.MODEL_DELETED, organization_id=model.organization_id, object_id=model.id)
    return len(models)


def _expire_artifacts(session: Session, store: ArtifactStore, job_id: str, seconds: int) -> None:
    """Bytes first: rows without them are deleted by the next sweep, bytes without rows would stay for good."""
    job = queries.lock_job(session, job_id)
    assert job is not None, "jobs keep their rows"
    keys = {artifact.storage_key for artifact in queries.artifacts(session, job_id)}
    result = file_queries.file_of(session, job.organization_id, job.result_file_id) if job.result_file_id else None
    if result is not None:
        keys.add(result.storage_key)
        session.delete(result)
    job.result_file_id = None
    queries.delete_artifacts(session, job_id)
    said = f"Its model and artifacts were deleted: this service keeps them for {seconds / DAY_SECONDS:,.0f} days"
    events.append(session, job_id, said)
    for key in sorted(keys):
        store.delete(key)
