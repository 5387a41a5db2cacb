"""Files: stored while they are hashed, inspected before anything is charged, deleted only when no job needs them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from core.accounts.limits import Limits, check_limit, limits_of, lock_limits
from core.artifacts import queries as artifacts
from core.artifacts.store import StoredObject
from core.audit import service as audit
from core.audit.models import AuditType
from core.datasets import queries
from core.datasets.inspection import Inspection
from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.db.serialization import deserialize
from core.errors import InvalidDatasetError, InvalidRequestError, NotFoundError, NotYetError
from core.idempotency.service import CreateRequest, once
from core.ids import new_id
from core.paging import Page
from core.queue.messages import INSPECT_FILE, MAINTENANCE_QUEUE, Nudge, enqueue_after_commit
from core.runtime import Runtime

LONGEST_FILENAME = 255
LONGEST_DETAILS = 2000
FETCH_RETRY_SECONDS = 5


@dataclass(frozen=True)
class Upload:
    """A file whose bytes are stored and whose row is not written yet."""

    id: str
    filename: str
    stored: StoredObject


def store_upload(runtime: Runtime, organization_id: str, filename: str, chunks: Iterable[bytes]) -> Upload:
    """Stream a file into the store.

    Raises FileTooLargeError, LimitReachedError where the organization has no room left, InvalidDatasetError for an
    empty file, StoreError.
    """
    with runtime.database.read() as session:
        limits = limits_of(session, runtime.settings, organization_id)
        check_room(session, limits, organization_id, 1)
    file_id = new_id("file-")
    name = Path(filename.replace("\\", "/")).name[:LONGEST_FILENAME] or "file"
    stored = runtime.store.put(f"{organization_id}/files/{file_id}", chunks, max_bytes=limits.upload_bytes)
    if stored.size_bytes == 0:
        runtime.store.delete(stored.key)
        raise InvalidDatasetError(f"The file {name!r} is empty.", code="empty_file", param="file")
    return Upload(file_id, name, stored)


def check_room(session: Session, limits: Limits, organization_id: str, size_bytes: int) -> None:
    """Raises LimitReachedError where the organization has no room for another file of this size."""
    advice = "Delete files that are no longer needed."
    check_limit("files", queries.count_files(session, organization_id) + 1, limits.files, advice)
    stored = queries.stored_bytes(session, organization_id) + artifacts.stored_bytes(session, organization_id)
    wanted = stored + size_bytes
    check_limit("storage_bytes", wanted, limits.storage_bytes, advice)


def upload_purpose(purpose: str) -> FilePurpose:
    """The purpose of an uploaded file. Raises InvalidRequestError for any but `fine-tune`."""
    if purpose != FilePurpose.FINE_TUNE:
        raise InvalidRequestError(
            f"purpose must be 'fine-tune'; got {purpose!r}.", code="invalid_purpose", param="purpose"
        )
    return FilePurpose.FINE_TUNE


def create_file(
    session: Session, organization_id: str, upload: Upload, purpose: FilePurpose = FilePurpose.FINE_TUNE
) -> StoredFile:
    """The row of a stored file; its inspection starts after the commit."""
    produced = purpose is FilePurpose.FINE_TUNE_RESULTS
    file = StoredFile(
        id=upload.id,
        organization_id=organization_id,
        filename=upload.filename,
        purpose=purpose,
        size_bytes=upload.stored.size_bytes,
        sha256=upload.stored.sha256,
        storage_key=upload.stored.key,
        status=FileStatus.PROCESSED if produced else FileStatus.UPLOADED,
    )
    session.add(file)
    session.flush()
    if not produced:
        audit.record(
            session, AuditType.FILE_CREATED, organization_id=organization_id, object_id=file.id, filename=file.filename
        )
        enqueue_after_commit(session, Nudge(INSPECT_FILE, MAINTENANCE_QUEUE, file.id))
    return file


def register_upload(
    runtime: Runtime, organization_id: str, upload: Upload, purpose: FilePurpose, create_request: CreateRequest
) -> StoredFile:
    """The row of an upload; a retried upload returns the first file. The bytes stay only if their row does.

    Raises ConflictError where an `Idempotency-Key` comes back with another file, and LimitReachedError.
    """

    def create(session: Session) -> str:
        limits = lock_limits(session, runtime.settings, organization_id)
        check_room(session, limits, organization_id, upload.stored.size_bytes)
        return create_file(session, organization_id, upload, purpose).id

    def register(session: Session) -> StoredFile:
        file_id = once(session, create_request, lambda: create(session))
        return get_file(session, organization_id, file_id)

    kept = False
    try:
        file = runtime.database.run(register)
        kept = file.id == upload.id
    finally:
        if not kept:
            runtime.store.delete(upload.stored.key)
    return file


def get_file(session: Session, organization_id: str, file_id: str, *, param: str = "file_id") -> StoredFile:
    """The organization's file. Raises NotFoundError."""
    file = queries.file_of(session, organization_id, file_id)
    if file is None:
        raise NotFoundError(f"No file {file_id!r}.", code="file_not_found", param=param)
    return file


def stored_file(session: Session, organization_id: str, file_id: str, *, param: str = "file_id") -> StoredFile:
    """The organization's file, its bytes in the store. Raises NotFoundError, NotYetError while a worker fetches it."""
    file = get_file(session, organization_id, file_id, param=param)
    if file.status is FileStatus.FETCHING:
        raise NotYetError(
            f"A worker fetches {file.filename!r} ({file.size_bytes:,} bytes) from the hub as {file_id}. "
            "Ask again in a moment.",
            code="file_being_fetched",
            param=param,
            retry_after_seconds=FETCH_RETRY_SECONDS,
        )
    return file


def list_files(
    session: Session,
    organization_id: str,
    *,
    purpose: FilePurpose | None = None,
    after: str | None = None,
    limit: int = 100,
    newest: bool = True,
) -> Page[StoredFile]:
    """A page of the organization's files."""
    rows = queries.page(session, organization_id, purpose=purpose, after=after, limit=limit + 1, newest=newest)
    return Page.of(rows, limit)


def inspection_of(file: StoredFile) -> Inspection | None:
    """What the inspection found; None where it has not run."""
    return deserialize(Inspection, file.inspection) if file.inspection is not None else None
