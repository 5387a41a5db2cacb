"""Table of job events."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, EnumText, Id, utc_now


class EventType(StrEnum):
    """What an event carries."""

    MESSAGE = "message"  # a sentence
    METRICS = "metrics"  # the numbers of one step


class EventLevel(StrEnum):
    """How much attention an event wants."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class JobEvent(Base):
    """One event. `sequence` counts within the job from 1, without gaps, so that a reader can resume exactly."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_id_sequence", "job_id", "sequence", unique=True),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    sequence: Mapped[int]
    type: Mapped[EventType] = mapped_column(EnumText(EventType, 20))
    level: Mapped[EventLevel] = mapped_column(EnumText(EventLevel, 10))
    message: Mapped[str] = mapped_column(String(2000))
    data: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
