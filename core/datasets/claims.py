"""Who works on a file: one process at a time, each organization in turn, and not for ever.

A claim is short and renewed while the work goes on, so that another takes over soon after its holder died. Each counts:
a file whose work has ended several times without a result ends its processes, and is given up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.datasets import queries
from core.datasets.models import FileStatus, StoredFile
from core.db.session import Database, database_now

__all__ = ["MOST_ATTEMPTS", "claim", "claim_next", "give_back", "renewed"]

MOST_ATTEMPTS = 3
CLAIMED = timedelta(seconds=30)
RENEWED_EVERY_SECONDS = 10.0

log = structlog.get_logger()


def claim(session: Session, file_id: str, status: FileStatus) -> StoredFile | None:
    """The file, this attempt counted; None where it is not in this status, or another works on it."""
    now = database_now(session)
    if not queries.claim(session, file_id, status, now, now + CLAIMED):
        return None
    return session.get_one(StoredFile, file_id, populate_existing=True)


def claim_next(session: Session, status: FileStatus) -> StoredFile | None:
    """As `claim`, for the oldest file of the organization whose turn it is; None where nothing waits."""
    for file_id in queries.waiting(session, status, database_now(session)):
        file = claim(session, file_id, status)
        if file is not None:
            return file
    return None


def give_back(session: Session, file_id: str, *, counts: bool) -> None:
    """End a claim without a result. `counts`: the file itself may be why."""
    file = session.get(StoredFile, file_id, with_for_update=True)
    if file is not None:
        file.claimed_until = database_now(session)
        file.attempts -= not counts


@contextmanager
def renewed(database: Database, file_id: str) -> Iterator[None]:
    """Keep the claim while the block runs."""
    done = Event()
    thread = Thread(target=_renew, args=(database, file_id, done.wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _renew(database: Database, file_id: str, wait: Callable[[float], bool]) -> None:
    while not wait(RENEWED_EVERY_SECONDS):
        try:
            database.run(lambda session: queries.extend_claim(session, file_id, database_now(session) + CLAIMED))
        except DBAPIError as error:  # another may take over, which is harmless
            log.warning("claim_not_renewed", file_id=file_id, error=str(error))
