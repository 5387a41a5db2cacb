"""Data sets of the hub as files of an organization: noted at once, fetched by a worker, inspected like uploads."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from core.accounts import hub_tokens
from core.accounts.limits import limits_of, lock_limits
from core.artifacts.store import StoredObject
from core.datasets import claims, hub, queries
from core.datasets.hub import HUB_SCHEME, HubSource
from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.datasets.service import LONGEST_DETAILS, LONGEST_FILENAME, check_room
from core.db.base import utc_now
from core.db.serialization import deserialize, serialize
from core.db.session import database_now
from core.errors import FileTooLargeError, InvalidDatasetError, ServiceUnavailableError, TunewrightError
from core.hub_access import HubAccess
from core.ids import new_id
from core.limited import Shares
from core.queue.messages import FETCH_FILE, INSPECT_FILE, MAINTENANCE_QUEUE, Nudge, enqueue_after_commit
from core.runtime import Runtime
from core.scratch import scratch_directory

GIVEN_UP_AFTER = timedelta(hours=1)  # a hub that is away so long
_CHUNK_BYTES = 1024**2

log = structlog.get_logger()


def is_hub_reference(text: str) -> bool:
    """Whether this names a data set of the hub instead of a file."""
    return text.startswith(HUB_SCHEME)


def ensure_file(runtime: Runtime, organization_id: str, reference: str, param: str) -> StoredFile:
    """The organization's file of what `reference` means now; where there is none yet, a worker is asked to fetch it.

    Asks the hub for metadata only. Raises what `hub.resolve` raises, FileTooLargeError where the split is larger than
    an upload may be, and LimitReachedError where the organization has no room for it.
    """
    with runtime.database.read() as session:
        access = hub_tokens.access_of(session, runtime.settings, organization_id)
    source = hub.resolve(hub.parse_reference(reference, param), access, param)
    return runtime.database.run(lambda session: _ensure(session, runtime, organization_id, source, param))


def _ensure(session: Session, runtime: Runtime, organization_id: str, source: HubSource, param: str) -> StoredFile:
    limits = lock_limits(session, runtime.settings, organization_id)  # held: two requests make one file
    key = hashlib.sha256(source.reference.encode()).hexdigest()
    known = queries.file_from_hub(session, organization_id, key)
    if known is not None:
        return known
    if source.size_bytes > limits.upload_bytes:
        raise FileTooLargeError(
            f"{source.reference} has {source.size_bytes:,} bytes, above the limit upload_bytes of "
            f"{limits.upload_bytes:,}. Choose a smaller split, or upload a part of it.",
            param=param,
        )
    check_room(session, limits, organization_id, source.size_bytes)
    file_id = new_id("file-")
    file = StoredFile(
        id=file_id,
        organization_id=organization_id,
        filename=source.filename[-LONGEST_FILENAME:],
        purpose=FilePurpose.FINE_TUNE,
        size_bytes=source.size_bytes,
        sha256="",
        storage_key=f"{organization_id}/files/{file_id}",
        status=FileStatus.FETCHING,
        hub_source=serialize(source),
        hub_key=key,
    )
    session.add(file)
    session.flush()
    enqueue_after_commit(session, Nudge(FETCH_FILE, MAINTENANCE_QUEUE, file_id))
    return file


def source_of(file: StoredFile) -> HubSource | None:
    """Where on the hub the file came from; None for an upload."""
    return deserialize(HubSource, file.hub_source) if file.hub_source is not None else None


def fetch_next(runtime: Runtime, shares: Shares) -> bool:
    """Fetch the next file that waits for it, each organization in turn and within its share.

    False where none waits, or the hub is away.
    """
    with shares.next(partial(claims.claim_next_of, runtime.database, FileStatus.FETCHING)) as file:
        return file is not None and _fetch(runtime, file)


def fetch(runtime: Runtime, file_id: str) -> None:
    """Fetch this file unless that was done, or another process does it. Runs outside any transaction."""
    file = runtime.database.run(lambda session: claims.claim(session, file_id, FileStatus.FETCHING))
    if file is not None:
        _fetch(runtime, file)


def _fetch(runtime: Runtime, file: StoredFile) -> bool:
    """Fetch a claimed file; False where it waits on.

    A refusal of the hub is kept as the file's error. A hub that is away leaves it waiting, and the sweep asks again.
    """
    with runtime.database.read() as session:
        limit_bytes = limits_of(session, runtime.settings, file.organization_id).upload_bytes
        access = hub_tokens.access_of(session, runtime.settings, file.organization_id)
    stored: StoredObject | None = None
    problem = ""
    try:
        with claims.renewed(runtime.database, file.id):
            stored = _stored(runtime, file, access, limit_bytes)
    except ServiceUnavailableError as error:
        if utc_now() - file.created_at < GIVEN_UP_AFTER:
            log.warning("hub_file_waits", file_id=file.id, error=error.message)
            runtime.database.run(lambda session: claims.give_back(session, file.id, counts=False))
            return False
        problem = error.message
    except TunewrightError as error:
        problem = error.message
    if not runtime.database.run(lambda session: _record(session, file.id, stored, problem)) and stored is not None:
        runtime.store.delete(stored.key)
    return True


def _stored(runtime: Runtime, file: StoredFile, access: HubAccess, limit_bytes: int) -> StoredObject:
    if file.attempts > claims.MOST_ATTEMPTS:
        raise InvalidDatasetError(
            f"Fetching this file has ended {claims.MOST_ATTEMPTS} times without a result, so it is not tried again."
        )
    source = deserialize(HubSource, file.hub_source)
    with scratch_directory() as directory:
        path = hub.download(source, access, directory)
        return runtime.store.put(file.storage_key, _chunks(path), max_bytes=limit_bytes)


def _record(session: Session, file_id: str, stored: StoredObject | None, problem: str) -> bool:
    """Write down how fetching ended; False for a file that was deleted meanwhile."""
    file = session.get(StoredFile, file_id, with_for_update=True)
    if file is None:
        return False
    if stored is None:
        details = f"{problem} Delete this file and name the data set again to have it fetched once more."
        file.status, file.status_details = FileStatus.ERROR, details[:LONGEST_DETAILS]
        return True
    file.size_bytes, file.sha256, file.status = stored.size_bytes, stored.sha256, FileStatus.UPLOADED
    file.attempts, file.claimed_until = 0, database_now(session)  # the next attempts are to inspect it
    enqueue_after_commit(session, Nudge(INSPECT_FILE, MAINTENANCE_QUEUE, file_id))
    return True


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
