"""Table of workers."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Id, utc_now


class WorkerRow(Base):
    """One worker process and the device it drives."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    process_id: Mapped[int]
    device: Mapped[dict[str, Any]]  # planner.devices.Device, free memory as it is without our own job
    device_class: Mapped[str] = mapped_column(String(100), index=True)
    used_bytes: Mapped[int | None] = mapped_column(BigInteger)  # device memory in use now, our job included
    tokens_per_second: Mapped[float | None]  # of the job it runs now
    versions: Mapped[dict[str, Any]]
    job_id: Mapped[str | None] = mapped_column(Id)
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    heartbeat_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    drain_requested_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
