"""SQL of remembered creates."""

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from core.idempotency.models import RememberedCreate


def delete_before(session: Session, oldest: datetime) -> None:
    """Drop what was remembered before `oldest`."""
    session.execute(delete(RememberedCreate).where(RememberedCreate.created_at < oldest))
