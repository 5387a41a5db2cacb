"""The fleet."""

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import IdentifiedBody, ResponseBody, unix_seconds
from core.fleet import service as fleet
from core.fleet.models import WorkerRow
from core.fleet.service import DevicePlace


class DeviceObject(ResponseBody):
    """One of the devices that a worker trains on."""

    index: int
    address: str = Field(description="How the worker's machine calls it.", examples=["cuda:0"])
    kind: Literal["cuda", "cpu"]
    name: str
    uuid: str
    device_class: str = Field(description="What it is priced and queued as.")
    total_bytes: int
    free_bytes: int = Field(description="Free for a new job; the one that runs on it does not count.")
    used_bytes: int | None = Field(description="In use now, its running job included.")
    compute_capability: str | None = Field(examples=["9.0"])
    problem: str | None = Field(description="Why nothing can be trained on it now; null where it is sound.")
    is_busy: bool
    tokens_per_second: float | None = Field(description="Of the job that it runs now.")


class WorkerObject(IdentifiedBody):
    """A worker heard of lately: one process of a machine, with the devices that it drives."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "worker_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "object": "worker",
                    "hostname": "gpu-1",
                    "started_at": 1795219200,
                    "heartbeat_at": 1795222800,
                    "process_id": 4711,
                    "is_busy": True,
                    "versions": {"torch": "2.13.0"},
                    "devices": [
                        {
                            "index": 0,
                            "address": "cuda:0",
                            "kind": "cuda",
                            "name": "NVIDIA H100 80GB HBM3",
                            "uuid": "GPU-5c3f",
                            "device_class": "h100-80gb",
                            "total_bytes": 85520809984,
                            "free_bytes": 84974239744,
                            "used_bytes": 21474836480,
                            "compute_capability": "9.0",
                            "problem": None,
                            "is_busy": True,
                            "tokens_per_second": 5123.4,
                        }
                    ],
                }
            ]
        }
    )

    object: Literal["worker"] = "worker"
    hostname: str
    started_at: int
    heartbeat_at: int
    process_id: int
    is_busy: bool = Field(description="Whether any of its devices is.")
    versions: dict[str, str]
    devices: list[DeviceObject]


def show_worker(row: WorkerRow) -> WorkerObject:
    """A worker as the wire shows it. Which jobs it runs is their owners' business."""
    return WorkerObject(
        id=row.id,
        hostname=row.hostname,
        started_at=unix_seconds(row.started_at),
        heartbeat_at=unix_seconds(row.heartbeat_at),
        process_id=row.process_id,
        is_busy=any(device.job_id is not None for device in row.devices),
        versions=row.versions,
        devices=[_device(place) for place in fleet.places_of(row)],
    )


def _device(place: DevicePlace) -> DeviceObject:
    device, capability = place.device, place.device.compute_capability
    return DeviceObject(
        index=device.index,
        address=device.address,
        kind="cuda" if device.kind == "cuda" else "cpu",
        name=device.name,
        uuid=device.uuid,
        device_class=device.device_class,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        used_bytes=place.row.used_bytes,
        compute_capability=".".join(map(str, capability)) if capability else None,
        problem=device.problem,
        is_busy=place.row.job_id is not None,
        tokens_per_second=place.row.tokens_per_second,
    )
