"""Recognising a create that was sent before.

The `openai` client retries a create whose answer it did not get, with the same body, no idempotency key and
`x-stainless-retry-count` above zero. Such a request, and any with an `Idempotency-Key`, gets the first result. The
record is written in the same transaction as the object, so that there is never one without the other.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.db.base import utc_now
from core.db.upsert import insert_or_ignore
from core.errors import ConflictError
from core.idempotency import queries
from core.idempotency.models import RememberedCreate


@dataclass(frozen=True)
class CreateRequest:
    """What identifies a create: who sends what where, and whether it says it is a retry."""

    credential: str
    path: str
    body_sha256: str
    idempotency_key: str | None
    is_retry: bool
    window_seconds: int

    @property
    def key(self) -> str:
        """Under which the create is remembered: 64 hex digits."""
        distinct = f"key:{self.idempotency_key}" if self.idempotency_key else f"body:{self.body_sha256}"
        return hashlib.sha256("\n".join([self.credential, self.path, distinct]).encode()).hexdigest()


def earlier(session: Session, request: CreateRequest) -> str | None:
    """The id of the object this create made before; None where it is new. For a look before expensive work.

    Raises ConflictError where an `Idempotency-Key` comes back with another body.
    """
    record = session.get(RememberedCreate, request.key)
    return _repeated(record, request) if record is not None else None


def once(session: Session, request: CreateRequest, make: Callable[[], str]) -> str:
    """The id of the object this create made before, or else of the one that `make` makes now.

    Raises ConflictError where an `Idempotency-Key` comes back with another body.
    """
    key = request.key
    if not insert_or_ignore(session, RememberedCreate, key=key, body_sha256=request.body_sha256, created_at=utc_now()):
        known = _repeated(session.get_one(RememberedCreate, key, with_for_update=True), request)
        if known is not None:
            return known
    record = session.get_one(RememberedCreate, key)
    record.object_id = make()
    record.body_sha256, record.created_at = request.body_sha256, utc_now()
    session.flush()
    return record.object_id


def forget_before(session: Session, oldest: datetime) -> None:
    """Drop what was remembered before `oldest`."""
    queries.delete_before(session, oldest)


def _repeated(record: RememberedCreate, request: CreateRequest) -> str | None:
    if utc_now() - record.created_at >= timedelta(seconds=request.window_seconds):
        return None
    if request.idempotency_key and record.body_sha256 != request.body_sha256:
        raise ConflictError(
            "This Idempotency-Key was used with another body. Use a new key for a new request.",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return record.object_id if request.idempotency_key or request.is_retry else None
