"""Tables of what jobs put into the store: their checkpoints, and what they published."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Id, utc_now


class Checkpoint(Base):
    """A point a job can go on from, as the wire shows it."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    step: Mapped[int]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")  # of its step
    valid_loss: Mapped[float | None] = mapped_column(Float)  # of those, which the best is known by
    storage_key: Mapped[str | None] = mapped_column(String(300))  # None once it was pruned
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class JobArtifact(Base):
    """Something a job published."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    position: Mapped[int]  # adapter first
    name: Mapped[str] = mapped_column(String(100))
    storage_key: Mapped[str] = mapped_column(String(300))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
