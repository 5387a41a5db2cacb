"""Rows that one worker works on for long: it has a lease, renews it, and every write of it is guarded by the token.

A job is leased so; whatever else is placed on a worker's devices can be. What a lease is about, when it may be claimed
and what its end means are the domain's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.db.base import Base, Id
from core.db.session import database_now
from core.ids import new_id

__all__ = ["Holder", "Leasable", "grant", "has_expired", "is_held_with", "release", "renew"]


class Leasable(Base):
    """A table whose rows are leased to workers, with the devices that they take there."""

    __abstract__ = True

    attempts: Mapped[int] = mapped_column(default=0)  # lost to crashes and lost leases since it last advanced
    lease_token: Mapped[str | None] = mapped_column(Id)
    lease_expires_at: Mapped[datetime | None]
    worker_id: Mapped[str | None] = mapped_column(Id)
    devices: Mapped[list[Any] | None]  # addresses on the worker's machine; None while nobody holds it


@dataclass(frozen=True)
class Holder:
    """A worker, and those of its devices that it puts at the disposal of what it claims: in the order it would take."""

    worker_id: str
    free: Sequence[str]  # addresses


def grant(session: Session, row: Leasable, holder: Holder, device_count: int, seconds: float) -> str:
    """Lease a row, which the caller holds, with the first of the holder's devices; returns the token."""
    assert device_count <= len(holder.free), "a row is claimed that fits"
    row.worker_id, row.devices = holder.worker_id, list(holder.free[:device_count])
    row.lease_token = token = new_id("lease_")
    renew(session, row, seconds)
    return token


def renew(session: Session, row: Leasable, seconds: float) -> None:
    """Keep a held row leased for so long from now, by the database's clock."""
    row.lease_expires_at = database_now(session) + timedelta(seconds=seconds)


def release(row: Leasable) -> None:
    """End the lease of a row that the caller holds."""
    row.lease_token = row.lease_expires_at = row.worker_id = row.devices = None


def is_held_with(row: Leasable | None, token: str) -> bool:
    """Whether the row is there and this is its lease."""
    return row is not None and row.lease_token == token


def has_expired(table: type[Leasable], now: datetime) -> ColumnElement[bool]:
    """Whether the lease of a row was not renewed in time."""
    return or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now)
