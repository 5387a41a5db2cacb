"""Deleting files: when nobody needs them, and by themselves where the settings say so."""

from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.orm import Session

from core.accounts.queries import lock_organization
from core.artifacts import queries as artifacts
from core.artifacts.store import ArtifactStore
from core.audit import service as audit
from core.audit.models import AuditType
from core.datasets.models import FilePurpose, StoredFile
from core.datasets.service import get_file
from core.db.session import database_now
from core.errors import ConflictError
from core.retention import queries
from core.runtime import Runtime
from core.settings import Settings

LOOKED_AT_ONCE = 200


def delete_file(session: Session, organization_id: str, file_id: str) -> str | None:
    """Forget a file; returns the key of its bytes, None where they are a job's artifact too, which keeps them.

    Raises NotFoundError, ConflictError while a job needs it.
    """
    file = get_file(session, organization_id, file_id)
    job_id = queries.unfinished_job_using(session, file_id)
    if job_id is not None:
        raise ConflictError(
            f"The job {job_id} still needs this file. Cancel the job or wait for its end.", code="file_in_use"
        )
    session.delete(file)
    session.flush()
    audit.record(
        session, AuditType.FILE_DELETED, organization_id=organization_id, object_id=file_id, filename=file.filename
    )
    return None if artifacts.is_artifact(session, file.storage_key) else file.storage_key


def file_kept_until(settings: Settings, file: StoredFile) -> datetime | None:
    """Until when a file is kept, unless a job needs it then; None: until somebody deletes it."""
    is_result = file.purpose is FilePurpose.FINE_TUNE_RESULTS
    seconds = settings.model_retention_seconds if is_result else settings.file_retention_seconds
    return None if seconds is None else file.created_at + timedelta(seconds=seconds)


def expire_files(runtime: Runtime) -> int:
    """Delete uploaded files that are older than they are kept and that nothing needs; returns how many.

    Raises StoreError where the store is away: the rest is deleted another time.
    """
    seconds = runtime.settings.file_retention_seconds
    if seconds is None:
        return 0
    with runtime.database.read() as session:
        before = database_now(session) - timedelta(seconds=seconds)
        expired = queries.unneeded_before(session, before, LOOKED_AT_ONCE)
    return sum(
        runtime.database.run(partial(_expire, store=runtime.store, organization_id=organization_id, file_id=file_id))
        for organization_id, file_id in expired
    )


def _expire(session: Session, store: ArtifactStore, organization_id: str, file_id: str) -> bool:
    """Bytes first: a row without them is deleted by the next sweep, bytes without a row would stay for good."""
    lock_organization(session, organization_id)  # as whoever creates a job does: none may begin to need it now
    if not queries.is_unneeded(session, file_id):
        return False
    key = delete_file(session, organization_id, file_id)
    if key is not None:
        store.delete(key)
    return True
