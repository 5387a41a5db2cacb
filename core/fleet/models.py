"""Tables of workers, of supervised programs and of sweeps."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.db.base import Base, EnumText, Id, utc_now


class ProgramStatus(StrEnum):
    """How a supervised program fares."""

    STARTING = "starting"  # not started yet
    RUNNING = "running"
    RESTARTING = "restarting"  # it died, and is started again after a delay
    STOPPED = "stopped"  # it ended as it should
    DRAINED = "drained"  # it ended as it was asked to, and stays down until it is asked to start again
    FAILED = "failed"  # it ended with an error and is not needed again


class WorkerRow(Base):
    """One worker process: a machine's, with the devices that it drives."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    process_id: Mapped[int]
    disk_free_bytes: Mapped[int | None] = mapped_column(BigInteger)  # where its runs are
    disk_total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    versions: Mapped[dict[str, Any]]
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    heartbeat_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    drain_requested_at: Mapped[datetime | None]
    stopped_at: Mapped[datetime | None]
    devices: Mapped[list["DeviceRow"]] = relationship(
        lazy="selectin", order_by="DeviceRow.position", cascade="all, delete-orphan", passive_deletes=True
    )


class DeviceRow(Base):
    """One device of a worker, and what it is reserved for."""

    __tablename__ = "devices"

    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)  # in the worker's order, from 0
    device: Mapped[dict[str, Any]]  # planner.devices.Device, free memory as it is without our own job
    device_class: Mapped[str] = mapped_column(String(100))
    used_bytes: Mapped[int | None] = mapped_column(BigInteger)  # device memory in use now, our job included
    tokens_per_second: Mapped[float | None]  # of the job that has it now
    job_id: Mapped[str | None] = mapped_column(Id)


class ProgramRow(Base):
    """One program that `tunewright up` keeps running."""

    __tablename__ = "programs"

    hostname: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    status: Mapped[ProgramStatus] = mapped_column(EnumText(ProgramStatus, 20))
    process_id: Mapped[int | None]
    restarts: Mapped[int]
    last_ending: Mapped[str | None] = mapped_column(String(100))
    changed_at: Mapped[datetime]
    start_requested_at: Mapped[datetime | None]  # of a drained program, until its supervisor has heard of it


class SweepRow(Base):
    """The last sweep that a machine's maintenance worker finished."""

    __tablename__ = "sweeps"

    hostname: Mapped[str] = mapped_column(String(255), primary_key=True)
    finished_at: Mapped[datetime]
    seconds: Mapped[float]
