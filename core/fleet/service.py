"""Workers report themselves and their devices; plans are made against what they reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from core.audit import service as audit
from core.audit.models import AuditType
from core.db.serialization import deserialize, serialize
from core.db.session import database_now
from core.errors import NotFoundError, ServiceUnavailableError
from core.fleet import queries
from core.fleet.models import DeviceRow, WorkerRow
from core.settings import Settings
from planner.devices import Device

HEARTBEATS_MISSED = 4  # a worker is taken for gone after this many
REMEMBERED = timedelta(days=1)  # a worker that is gone is still one that should be there
MOST_REMEMBERED = 1000
FORGOTTEN_AFTER = timedelta(days=30)
DRAINED_EXIT_CODE = 3  # of a worker that was asked to drain: whoever keeps workers running leaves it down


@dataclass(frozen=True)
class DevicePlace:
    """A device of a machine, and the worker that drove it last."""

    worker: WorkerRow
    row: DeviceRow
    device: Device
    is_up: bool = True

    @property
    def device_class(self) -> str:
        """The class of the device."""
        return self.row.device_class


@dataclass(frozen=True)
class DeviceReport:
    """What a worker says of one of its devices. `device.free_bytes` is without the job that has it."""

    device: Device
    used_bytes: int | None = None
    tokens_per_second: float | None = None
    job_id: str | None = None


@dataclass(frozen=True)
class WorkerReport:
    """What a worker says of itself with each heartbeat."""

    worker_id: str
    hostname: str
    process_id: int
    devices: Sequence[DeviceReport]
    versions: dict[str, str]
    disk_free_bytes: int | None = None  # where its runs are
    disk_total_bytes: int | None = None


def report(session: Session, said: WorkerReport) -> bool:
    """Record a heartbeat; returns whether the worker was asked to drain."""
    row = session.get(WorkerRow, said.worker_id)
    if row is None:
        row = WorkerRow(id=said.worker_id, hostname=said.hostname, process_id=said.process_id, versions=said.versions)
        row.started_at = database_now(session)
        session.add(row)
    known = {device.position: device for device in row.devices}
    row.devices = [
        _written(known.get(position) or DeviceRow(position=position), one) for position, one in enumerate(said.devices)
    ]
    row.disk_free_bytes, row.disk_total_bytes = said.disk_free_bytes, said.disk_total_bytes
    row.heartbeat_at = database_now(session)
    row.stopped_at = None
    return row.drain_requested_at is not None


def _written(row: DeviceRow, said: DeviceReport) -> DeviceRow:
    row.device, row.device_class = serialize(said.device), said.device.device_class
    row.used_bytes, row.tokens_per_second, row.job_id = said.used_bytes, said.tokens_per_second, said.job_id
    return row


def get_worker(session: Session, worker_id: str) -> WorkerRow:
    """The worker. Raises NotFoundError."""
    row = session.get(WorkerRow, worker_id)
    if row is None:
        raise NotFoundError(f"No worker {worker_id!r}. `tunewright workers` lists them.", code="worker_not_found")
    return row


def request_drain(session: Session, worker_id: str) -> None:
    """Ask a worker to put its job back into the queue, after a checkpoint, and to end. Raises NotFoundError."""
    row = get_worker(session, worker_id)
    row.drain_requested_at = row.drain_requested_at or database_now(session)
    audit.record(session, AuditType.WORKER_DRAINED, organization_id=None, object_id=worker_id, hostname=row.hostname)


def stop(session: Session, worker_id: str) -> None:
    """Record that a worker left in good order."""
    row = session.get(WorkerRow, worker_id)
    if row is not None:
        row.stopped_at = database_now(session)
        for device in row.devices:
            device.job_id = None


def forget_workers(session: Session) -> None:
    """Drop workers that have been gone for long, of which there is one for each start of a process."""
    queries.delete_workers(session, database_now(session) - FORGOTTEN_AFTER)


def workers(session: Session, settings: Settings) -> Sequence[WorkerRow]:
    """The workers heard of lately."""
    since = database_now(session) - timedelta(seconds=HEARTBEATS_MISSED * settings.heartbeat_seconds)
    return queries.alive(session, since)


def driven(session: Session, settings: Settings) -> list[DevicePlace]:
    """Each device of each worker heard of lately."""
    return [place for row in workers(session, settings) for place in places_of(row)]


def places_of(worker: WorkerRow, *, is_up: bool = True) -> list[DevicePlace]:
    """The devices of one worker."""
    return [DevicePlace(worker, row, deserialize(Device, row.device), is_up) for row in worker.devices]


def places(session: Session, settings: Settings) -> list[DevicePlace]:
    """Where workers ran within the last day: each device of each machine once, whatever process drove it."""
    now = database_now(session)
    since = now - timedelta(seconds=HEARTBEATS_MISSED * settings.heartbeat_seconds)
    found: dict[tuple[str, str], DevicePlace] = {}
    for row in queries.reported(session, now - REMEMBERED, MOST_REMEMBERED):
        is_up = row.heartbeat_at >= since and row.stopped_at is None
        for place in places_of(row, is_up=is_up):
            before = found.get((row.hostname, place.device.address))
            if before is None or (is_up and not before.is_up):
                found[row.hostname, place.device.address] = place
    return list(found.values())


def devices(session: Session, settings: Settings) -> list[Device]:
    """The devices of the workers heard of lately, but for the sick."""
    return [place.device for place in driven(session, settings) if place.device.problem is None]


def require_devices(session: Session, settings: Settings) -> list[Device]:
    """The same. Raises ServiceUnavailableError where there is none, with what is wrong with each sick one."""
    reported = [(place.worker.hostname, place.device) for place in driven(session, settings)]
    sound = [device for _, device in reported if device.problem is None]
    if sound:
        return sound
    if not reported:
        raise ServiceUnavailableError(
            "No worker has reported a device lately, so nothing can be planned. Start one with `tunewright worker`.",
            code="no_workers",
        )
    sick = dict.fromkeys(f"{device.name} ({device.address}) of {host}: {device.problem}." for host, device in reported)
    raise ServiceUnavailableError(
        f"No device can train now, so nothing can be planned. {' '.join(sick)}", code="no_workers"
    )
