"""Prometheus metrics: requests as they pass, and the service's state when it is asked for."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.exceptions import RedisError

from core.fleet import programs
from core.fleet import service as fleet
from core.fleet.models import ProgramRow, ProgramStatus, SweepRow, WorkerRow
from core.jobs import queries as jobs
from core.jobs.states import JobStatus
from core.queue.messages import MAINTENANCE_QUEUE, training_queue
from core.runtime import Runtime

_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class RequestMetrics:
    """Counts and latencies of requests, by method and route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "tunewright_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._latency = Histogram(
            "tunewright_http_request_seconds",
            "From the request to the end of its response.",
            ["method", "route"],
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)


class ServiceCollector:
    """Reads jobs, queues and workers at the moment of a scrape, so that nothing has to be kept up to date."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        """The gauges, as they stand now."""
        with self._runtime.database.read() as session:
            counts = jobs.count_by_status(session)
            workers = fleet.workers(session, self._runtime.settings)
            supervised, sweep = programs.programs(session), programs.last_sweep(session)
        yield _jobs(counts)
        yield from _programs(supervised)
        yield _sweep(sweep)
        yield from _workers(workers)
        yield self._queues({worker.device_class for worker in workers})

    def _queues(self, device_classes: set[str]) -> Metric:
        metric = GaugeMetricFamily("tunewright_queue_depth", "Messages waiting on the broker.", labels=["queue"])
        try:
            for queue in [MAINTENANCE_QUEUE, *sorted(training_queue(name) for name in device_classes)]:
                metric.add_metric([queue], self._runtime.publisher.depth(queue))
        except RedisError:
            pass  # an absent series says that the broker is away; the other metrics are still wanted
        return metric


def _jobs(counts: dict[JobStatus, int]) -> Metric:
    metric = GaugeMetricFamily("tunewright_jobs", "Jobs by state.", labels=["status"])
    for status in JobStatus:
        metric.add_metric([status.value], counts.get(status, 0))
    return metric


def _workers(workers: Iterable[WorkerRow]) -> Iterable[Metric]:
    labels = ["worker", "device_class"]
    up = GaugeMetricFamily("tunewright_worker_up", "Workers heard of lately.", labels=labels)
    total = GaugeMetricFamily("tunewright_device_memory_total_bytes", "Memory of the device.", labels=labels)
    used = GaugeMetricFamily("tunewright_device_memory_used_bytes", "Memory in use on the device.", labels=labels)
    speed = GaugeMetricFamily(
        "tunewright_training_tokens_per_second", "Non-padding tokens trained per second.", labels=labels
    )
    for worker in workers:
        values = [worker.id, worker.device_class]
        up.add_metric(values, 1)
        total.add_metric(values, fleet.device_of(worker).total_bytes)
        if worker.used_bytes is not None:
            used.add_metric(values, worker.used_bytes)
        speed.add_metric(values, worker.tokens_per_second or 0.0)
    return [up, total, used, speed]


def _programs(rows: Iterable[ProgramRow]) -> Iterable[Metric]:
    labels = ["host", "program"]
    up = GaugeMetricFamily("tunewright_program_up", "Whether a supervised program runs.", labels=labels)
    restarts = GaugeMetricFamily(
        "tunewright_program_restarts", "How often it was started again since its supervisor came up.", labels=labels
    )
    for row in rows:
        if row.status is not ProgramStatus.STOPPED:
            up.add_metric([row.hostname, row.name], int(row.status is ProgramStatus.RUNNING))
            restarts.add_metric([row.hostname, row.name], row.restarts)
    return [up, restarts]


def _sweep(row: SweepRow | None) -> Metric:
    metric = GaugeMetricFamily(
        "tunewright_sweep_finished_timestamp_seconds", "When lost jobs and messages were last looked for; 0: never."
    )
    metric.add_metric([], row.finished_at.timestamp() if row else 0.0)
    return metric
