"""Prometheus metrics: requests as they pass, and the service's state when it is asked for."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from api import metric_families as families
from api.readiness import Readiness
from core.db.session import database_now
from core.disk import DiskSpace, disk_space
from core.fleet import programs
from core.fleet import service as fleet
from core.fleet.service import DevicePlace
from core.jobs import queries as jobs
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
    """Reads jobs, queues and workers at the moment of a scrape, so that nothing has to be kept up to date.

    What is away is missing, and said to be: the rest of the metrics is wanted then more than ever.
    """

    def __init__(self, runtime: Runtime, readiness: Readiness) -> None:
        self._runtime = runtime
        self._readiness = readiness

    def collect(self) -> Iterable[Metric]:
        """The metrics, as they stand now."""
        measured = self._readiness.measure()
        yield from families.dependencies(measured)
        places: list[DevicePlace] = []
        if all(part.is_up for part in measured if part.name == "database"):
            try:
                found = list(self._of_database(places))
            except DBAPIError:  # gone since it was asked
                found = []
            yield from found
        yield from families.disks(self._data_space(), places)

    def _data_space(self) -> DiskSpace | None:
        try:
            return disk_space(self._runtime.settings.data_dir)
        except OSError:  # the store's check says more
            return None

    def _of_database(self, places: list[DevicePlace]) -> Iterator[Metric]:
        with self._runtime.database.read() as session:
            now = database_now(session)
            counts, queues, tallies = jobs.count_by_status(session), jobs.queues(session), jobs.tallies(session)
            places += fleet.places(session, self._runtime.settings)
            supervised, sweep = programs.programs(session), programs.last_sweep(session)
        yield families.jobs(counts)
        yield from families.queues(queues, now)
        yield from families.tallies(tallies)
        yield from families.programs(supervised)
        yield families.sweep(sweep)
        yield from families.workers(places)
        yield from self._messages({queue.device_class for queue in queues} | {place.device_class for place in places})

    def _messages(self, device_classes: set[str]) -> Iterator[Metric]:
        metric = GaugeMetricFamily("tunewright_queue_depth", "Messages waiting on the broker.", labels=["queue"])
        try:
            for queue in [MAINTENANCE_QUEUE, *sorted(training_queue(name) for name in device_classes)]:
                metric.add_metric([queue], self._runtime.publisher.depth(queue))
        except RedisError:
            return  # tunewright_dependency_up says that the broker is away
        yield metric
