"""Table of remembered creates."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, utc_now


class RememberedCreate(Base):
    """What a create with this key made."""

    __tablename__ = "remembered_creates"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 over caller, path and key or body
    body_sha256: Mapped[str] = mapped_column(String(64))
    object_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
