"""Keeping one lease alive while a job runs, accounting for its time, and hearing what its owner wants."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from core.errors import StaleLeaseError
from core.jobs import lease as leases
from core.jobs.lease import Lease
from core.jobs.states import JobStatus
from core.outage_log import OutageLog
from core.queue.messages import job_channel
from core.queue.publisher import TIMEOUTS
from core.runtime import Runtime

LISTEN_SECONDS = 1.0
BEATS_COUNTED = 2  # heartbeats of device time that are counted at most from one to the next


class LeaseKeeper:
    """A thread that renews a lease every heartbeat, and at once when the job's channel wakes it.

    `on_stop` is called, once, when the owner asks for a pause or an end; `on_lost`, once, when the lease is another's
    or could not be renewed before it ran out.
    """

    def __init__(
        self, runtime: Runtime, lease: Lease, *, on_stop: Callable[[], None], on_lost: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._lease = lease
        self._on_stop, self._on_lost = on_stop, on_lost
        self._ended = False
        self._renewals = OutageLog("lease_not_renewed", "lease_renewed_again")
        self._broker = OutageLog("broker_away", "broker_back")
        self._wake = threading.Event()
        self._clock = threading.Lock()
        self._running_since: float | None = None
        self._unaccounted_seconds = 0.0
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()

    @contextmanager
    def device_in_use(self) -> Iterator[None]:
        """Account for the time within the block as device time."""
        with self._clock:
            self._running_since = time.monotonic()
        try:
            yield
        finally:
            with self._clock:
                self._collect()
                self._running_since = None

    def take_seconds(self) -> float:
        """Device time since it was last taken."""
        with self._clock:
            self._collect()
            seconds, self._unaccounted_seconds = self._unaccounted_seconds, 0.0
            return seconds

    def _collect(self) -> None:
        """Add the time since this was last called: with each beat, and so no more where the process was frozen."""
        if self._running_since is not None:
            now = time.monotonic()
            longest = BEATS_COUNTED * self._runtime.settings.heartbeat_seconds
            self._unaccounted_seconds += min(now - self._running_since, longest)
            self._running_since = now

    def _keep(self) -> None:
        settings = self._runtime.settings
        stop_said = False
        renewed_at = time.monotonic()
        seconds = 0.0
        with self._woken_by_news():
            while not self._ended:
                seconds += self.take_seconds()
                asked_at = time.monotonic()  # the lease is counted from then, at the earliest
                try:
                    status = self._renew(seconds)
                    renewed_at, seconds = asked_at, 0.0
                    self._renewals.back(job_id=self._lease.job_id)
                except StaleLeaseError:
                    self._on_lost()
                    return
                except DBAPIError as error:
                    seconds = 0.0  # an outage is not charged
                    self._renewals.away(error.orig, job_id=self._lease.job_id)
                    status = JobStatus.RUNNING
                if time.monotonic() - renewed_at > settings.lease_seconds:
                    self._on_lost()
                    return
                if status is not JobStatus.RUNNING and not stop_said:
                    stop_said = True
                    self._on_stop()
                self._wake.wait(settings.heartbeat_seconds)
                self._wake.clear()
        self._put_back(seconds)

    def _put_back(self, seconds: float) -> None:
        with self._clock:
            self._unaccounted_seconds += seconds

    def _renew(self, used_seconds: float) -> JobStatus:
        settings, lease = self._runtime.settings, self._lease
        return self._runtime.database.run(lambda session: leases.renew(session, settings, lease, used_seconds))

    @contextmanager
    def _woken_by_news(self) -> Iterator[None]:
        """Wake the loop whenever the job's channel is published to; without a broker the heartbeat has to do."""
        done = threading.Event()
        threading.Thread(target=self._listen, args=(done,), name=f"news-{self._lease.job_id}", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _listen(self, done: threading.Event) -> None:
        job_id = self._lease.job_id
        with Redis.from_url(self._runtime.settings.resolved_redis_url, **TIMEOUTS) as broker:
            news = broker.pubsub(ignore_subscribe_messages=True)
            while not done.is_set():
                try:
                    if not news.subscribed:
                        news.subscribe(**{job_channel(job_id): lambda _: self._wake.set()})
                    news.get_message(timeout=LISTEN_SECONDS)
                except RedisError as error:
                    self._broker.away(error, job_id=job_id)
                    done.wait(LISTEN_SECONDS)
                else:
                    self._broker.back(job_id=job_id)
            news.close()
