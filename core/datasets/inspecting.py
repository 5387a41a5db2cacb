"""Inspecting stored files, each in a limited child: whatever is in one, it ends as `processed` or as `error`."""

import time
from functools import partial

import structlog
from sqlalchemy.orm import Session

from core.datasets import claims, in_child
from core.datasets.inspection import Inspection
from core.datasets.models import FileStatus, StoredFile
from core.datasets.previews import without_nul
from core.datasets.service import LONGEST_DETAILS
from core.db.serialization import deserialize, serialize
from core.errors import InvalidDatasetError, NotFoundError, RateLimitError, ServiceUnavailableError
from core.limited import ChildDiedError, LimitExceededError, Shares
from core.runtime import Runtime
from core.scratch import scratch_directory

__all__ = ["ensure_inspected", "inspect_next", "unreadable"]

ELSEWHERE_SECONDS = 20.0  # how long another process is waited for that inspects the file already
UNLIMITED = Shares()
POLL_SECONDS = 0.1  # the database has no events to wait for

log = structlog.get_logger()


def ensure_inspected(runtime: Runtime, file_id: str) -> None:
    """Inspect the file unless that was done; where another process does it now, wait a while for that one.

    Runs outside any transaction. Raises RateLimitError where too many others are read, StoreError.
    """
    with runtime.database.read() as session:
        file = session.get(StoredFile, file_id)
    if file is None or file.status is not FileStatus.UPLOADED:
        return
    with runtime.children.turns.turn(file.organization_id):
        deadline = time.monotonic() + ELSEWHERE_SECONDS
        while True:
            claimed = runtime.database.run(lambda session: claims.claim(session, file_id, FileStatus.UPLOADED))
            if claimed is not None:
                _inspect(runtime, claimed)
                return
            with runtime.database.read() as session:
                file = session.get(StoredFile, file_id)
            if file is None or file.status is not FileStatus.UPLOADED or time.monotonic() > deadline:
                return
            time.sleep(POLL_SECONDS)


def inspect_next(runtime: Runtime, shares: Shares = UNLIMITED) -> bool:
    """Inspect the next file that waits, each organization in turn and within its share; False where none does."""
    with shares.next(partial(claims.claim_next_of, runtime.database, FileStatus.UPLOADED)) as file:
        if file is None:
            return False
        try:
            with runtime.children.turns.turn(file.organization_id):
                _inspect(runtime, file)
        except RateLimitError:  # the sweep asks again
            runtime.database.run(lambda session: claims.give_back(session, file.id, counts=False))
            return False
        return True


def _inspect(runtime: Runtime, file: StoredFile) -> None:
    """Inspect a claimed file, and write down what was found."""
    inspection: Inspection | None = None
    try:
        with claims.renewed(runtime.database, file.id):
            inspection = _found(runtime, file)
        details = _details(inspection)
    except InvalidDatasetError as error:
        details = error.message
    except (LimitExceededError, ChildDiedError) as error:
        log.warning("inspection_failed", file_id=file.id, attempt=file.attempts, error=str(error))
        if isinstance(error, ChildDiedError) and file.attempts < claims.MOST_ATTEMPTS:
            runtime.database.run(lambda session: claims.give_back(session, file.id, counts=True))
            return
        details = unreadable(error)
    except NotFoundError:  # its bytes are gone, as they are while it is being deleted
        details = "The file's bytes are not in the store. Upload it again."
    except ServiceUnavailableError:
        runtime.database.run(lambda session: claims.give_back(session, file.id, counts=False))
        raise
    runtime.database.run(lambda session: _record(session, file.id, inspection, details))


def _found(runtime: Runtime, file: StoredFile) -> Inspection:
    if file.attempts > claims.MOST_ATTEMPTS:
        raise InvalidDatasetError(
            f"Reading this file has ended {claims.MOST_ATTEMPTS} times without a result, so it is not tried again. "
            "Write its rows as JSON Lines, and upload that."
        )
    with scratch_directory() as directory:
        path = runtime.store.materialize(file.storage_key, directory)
        return deserialize(Inspection, runtime.children.call(in_child.inspect, path))


def unreadable(error: LimitExceededError | ChildDiedError) -> str:
    """Why a file cannot be used that a child could not read."""
    return f"This file cannot be read: {error}. Write its rows as JSON Lines, in several files if it is large."


def _details(inspection: Inspection) -> str | None:
    if not inspection.error_count:
        return None
    more = inspection.error_count - len(inspection.errors)
    lines = [*map(str, inspection.errors), *([f"And {more} more rows."] if more else [])]
    return "\n".join(lines)


def _record(session: Session, file_id: str, inspection: Inspection | None, details: str | None) -> None:
    file = session.get(StoredFile, file_id, with_for_update=True)
    if file is None or file.status is not FileStatus.UPLOADED:
        return
    file.inspection = without_nul(serialize(inspection)) if inspection else None
    file.status = FileStatus.ERROR if details is not None else FileStatus.PROCESSED
    file.status_details = without_nul(details[:LONGEST_DETAILS]) if details is not None else None
