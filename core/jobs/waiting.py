"""Where a queued job stands in line, and when its turn should come."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.db.session import database_now
from core.fleet import service as fleet
from core.jobs import queries
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.settings import Settings


@dataclass(frozen=True)
class Place:
    """A place in line. `position` is 1 for the next job; `starts_at` is None where no worker is there to start it."""

    position: int
    starts_at: datetime | None


def places(session: Session, settings: Settings, jobs: Iterable[Job]) -> dict[str, Place]:
    """The places of those of `jobs` that are queued, by id.

    The line is the one workers claim from: fair between organizations, then by age. When a job starts follows from the
    predicted seconds of those in front of it and the workers that are there now.
    """
    wanted = {job.id: job.device_class for job in jobs if job.status is JobStatus.QUEUED}
    found: dict[str, Place] = {}
    for device_class in set(wanted.values()):
        starts = _starts(session, settings, device_class)
        for position, waiting in enumerate(queries.waiting_line(session, device_class), start=1):
            if waiting.id in wanted:
                found[waiting.id] = Place(position, starts.next_start())
            starts.take(waiting.predicted_seconds)
    return found


class _Starts:
    """Workers as the times at which each is next free."""

    def __init__(self, free_at: list[datetime]) -> None:
        self._free_at = free_at
        heapq.heapify(free_at)

    def next_start(self) -> datetime | None:
        return self._free_at[0] if self._free_at else None

    def take(self, seconds: float) -> None:
        if self._free_at:
            heapq.heapreplace(self._free_at, self._free_at[0] + timedelta(seconds=seconds))


def _starts(session: Session, settings: Settings, device_class: str) -> _Starts:
    now = database_now(session)
    workers = sum(device.device_class == device_class for device in fleet.devices(session, settings))
    busy = [max(now, at or now) for at in queries.running_until(session, device_class)][:workers]
    return _Starts(busy + [now] * (workers - len(busy)))
