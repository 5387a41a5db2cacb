"""Who works on a file: one process at a time, each organization in turn, and not for ever.

Each claim counts: a file whose work has ended several times without a result ends its processes, and is given up.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from core import renewal
from core.datasets import queries
from core.datasets.models import FileStatus, StoredFile
from core.db.session import Database, database_now
from core.renewal import CLAIMED

__all__ = ["MOST_ATTEMPTS", "claim", "claim_next", "give_back", "renewed"]

MOST_ATTEMPTS = 3


def claim(session: Session, file_id: str, status: FileStatus) -> StoredFile | None:
    """The file, this attempt counted; None where it is not in this status, or another works on it."""
    now = database_now(session)
    if not queries.claim(session, file_id, status, now, now + CLAIMED):
        return None
    return session.get_one(StoredFile, file_id, populate_existing=True)


def claim_next_of(database: Database, status: FileStatus, passed_over: Collection[str] = ()) -> StoredFile | None:
    """As `claim_next`, in a transaction of its own."""
    return database.run(lambda session: claim_next(session, status, passed_over))


def claim_next(session: Session, status: FileStatus, passed_over: Collection[str] = ()) -> StoredFile | None:
    """As `claim`, for the oldest file of the organization whose turn it is; None where nothing waits."""
    for file_id in queries.waiting(session, status, database_now(session), passed_over):
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

    def renew() -> None:
        database.run(lambda session: queries.extend_claim(session, file_id, database_now(session) + CLAIMED))

    with renewal.renewed(renew, file_id):
        yield
