"""How the state of the service is written for Prometheus. Labels are names that a restart does not change."""

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from api.readiness import Measured
from core.disk import DiskSpace
from core.fleet.models import ProgramRow, ProgramStatus, SweepRow
from core.fleet.service import DevicePlace
from core.jobs.models import JobTally, TallyKind
from core.jobs.queries import Queue
from core.jobs.states import JobStatus
from core.jobs.tallies import BOUNDS_SECONDS

_BOUNDS = (*(str(bound) for bound in BOUNDS_SECONDS), "+Inf")


def dependencies(measured: Iterable[Measured]) -> Iterator[Metric]:
    """Whether database, broker and store answer, and how fast."""
    up = GaugeMetricFamily("tunewright_dependency_up", "Whether it answers, in time and well.", labels=["dependency"])
    seconds = GaugeMetricFamily(
        "tunewright_dependency_seconds", "How long its answer took, or has taken so far.", labels=["dependency"]
    )
    for one in measured:
        up.add_metric([one.name], int(one.is_up))
        seconds.add_metric([one.name], one.seconds)
    yield from (up, seconds)


def disks(data: DiskSpace | None, places: Iterable[DevicePlace]) -> Iterator[Metric]:
    """Room for this process's `data`, and for the runs of each worker's host."""
    labels = ["directory", "host"]
    free = GaugeMetricFamily("tunewright_disk_free_bytes", "Room left on the directory's disk.", labels=labels)
    total = GaugeMetricFamily("tunewright_disk_total_bytes", "Size of the directory's disk.", labels=labels)
    if data is not None:
        free.add_metric(["data", platform.node()], data.free_bytes)
        total.add_metric(["data", platform.node()], data.total_bytes)
    for host, worker in {place.worker.hostname: place.worker for place in places if place.is_up}.items():
        if worker.disk_free_bytes is not None and worker.disk_total_bytes is not None:
            free.add_metric(["runs", host], worker.disk_free_bytes)
            total.add_metric(["runs", host], worker.disk_total_bytes)
    yield from (free, total)


def jobs(counts: Mapping[JobStatus, int]) -> Metric:
    """How many jobs there are in each state."""
    metric = GaugeMetricFamily("tunewright_jobs", "Jobs by state.", labels=["status"])
    for status in JobStatus:
        metric.add_metric([status.value], counts.get(status, 0))
    return metric


def queues(found: Iterable[Queue], now: datetime) -> Iterator[Metric]:
    """The queue of each device class that has one, with a worker or without."""
    length = GaugeMetricFamily("tunewright_queued_jobs", "Jobs that wait for a device.", labels=["device_class"])
    oldest = GaugeMetricFamily(
        "tunewright_oldest_queued_job_seconds", "How long the first of them has waited.", labels=["device_class"]
    )
    for queue in found:
        length.add_metric([queue.device_class], queue.length)
        oldest.add_metric([queue.device_class], max(0.0, (now - queue.oldest_queued_at).total_seconds()))
    yield from (length, oldest)


def tallies(rows: Sequence[JobTally]) -> Iterator[Metric]:
    """What has become of all jobs so far."""
    waited = HistogramMetricFamily("tunewright_job_waiting_seconds", "Time in the queue.", labels=["method"])
    ran = HistogramMetricFamily(
        "tunewright_job_running_seconds", "Device time of jobs that ended.", labels=["method", "outcome"]
    )
    ended = CounterMetricFamily(
        "tunewright_jobs_ended", "Jobs that ended, by the code of their error.", labels=["outcome", "code"]
    )
    for status in JobStatus.finished():  # a counter that begins at its first 1 hides it from increase()
        ended.add_metric([status.value, ""], sum(row.count for row in _of(rows, TallyKind.ENDED, status.value, "")))
    for row in rows:
        if row.kind is TallyKind.WAITED:
            waited.add_metric([row.method], _buckets(row), row.seconds)
        elif row.kind is TallyKind.RAN:
            ran.add_metric([row.method, row.status], _buckets(row), row.seconds)
        elif row.kind is TallyKind.ENDED and row.code:
            ended.add_metric([row.status, row.code], row.count)
    lost = sum(row.count for row in rows if row.kind is TallyKind.LOST_LEASE)
    yield from (waited, ran, ended)
    yield CounterMetricFamily("tunewright_leases_lost", "Leases that workers did not renew in time.", value=lost)


def _of(rows: Iterable[JobTally], kind: TallyKind, status: str, code: str) -> Iterator[JobTally]:
    return (row for row in rows if (row.kind, row.status, row.code) == (kind, status, code))


def _buckets(row: JobTally) -> list[tuple[str, float]]:
    assert row.buckets is not None, "times have buckets"
    return list(zip(_BOUNDS, accumulate(row.buckets), strict=True))


def workers(places: Iterable[DevicePlace]) -> Iterator[Metric]:
    """Each device that a worker drove within the last day."""
    labels = ["host", "device", "device_class"]
    up = GaugeMetricFamily("tunewright_worker_up", "Whether a worker drives the device.", labels=labels)
    total = GaugeMetricFamily("tunewright_device_memory_total_bytes", "Memory of the device.", labels=labels)
    used = GaugeMetricFamily("tunewright_device_memory_used_bytes", "Memory in use on the device.", labels=labels)
    speed = GaugeMetricFamily(
        "tunewright_training_tokens_per_second", "Non-padding tokens trained per second.", labels=labels
    )
    for place in places:
        values = [place.worker.hostname, place.device.address, place.device_class]
        up.add_metric(values, int(place.is_up))
        if not place.is_up:
            continue
        total.add_metric(values, place.device.total_bytes)
        if place.row.used_bytes is not None:
            used.add_metric(values, place.row.used_bytes)
        speed.add_metric(values, place.row.tokens_per_second or 0.0)
    yield from (up, total, used, speed)


def programs(rows: Iterable[ProgramRow]) -> Iterator[Metric]:
    """What `tunewright up` keeps running."""
    labels = ["host", "program"]
    up = GaugeMetricFamily("tunewright_program_up", "Whether a supervised program runs.", labels=labels)
    restarts = GaugeMetricFamily(
        "tunewright_program_restarts", "How often it was started again since its supervisor came up.", labels=labels
    )
    for row in rows:
        if row.status is not ProgramStatus.STOPPED:
            up.add_metric([row.hostname, row.name], int(row.status is ProgramStatus.RUNNING))
            restarts.add_metric([row.hostname, row.name], row.restarts)
    yield from (up, restarts)


def sweep(row: SweepRow | None) -> Metric:
    """When the last sweep ended."""
    metric = GaugeMetricFamily(
        "tunewright_sweep_finished_timestamp_seconds", "When lost jobs and messages were last looked for; 0: never."
    )
    metric.add_metric([], row.finished_at.timestamp() if row else 0.0)
    return metric
