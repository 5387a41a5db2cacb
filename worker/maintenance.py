"""The maintenance worker: it fetches and inspects files, rehearses models, and sweeps for what was lost."""

import platform
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from time import monotonic

import structlog
from celery.beat import EmbeddedService, Scheduler
from celery.signals import worker_ready
from redis import Redis

from core.datasets import hub_files
from core.datasets import service as files
from core.datasets.queries import unfetched, uninspected
from core.db.base import utc_now
from core.fleet.programs import report_sweep
from core.jobs import lease, queries
from core.jobs.retention import expire_checkpoints
from core.plans import rehearsals
from core.plans.queries import unanswered
from core.queue.messages import (
    FETCH_FILE,
    INSPECT_FILE,
    MAINTENANCE_QUEUE,
    REHEARSE,
    RUN_JOB,
    Nudge,
    training_queue,
)
from core.retries.service import forget_before
from core.runtime import Runtime
from worker.app import SWEEP, create_app, serve
from worker.rehearsals import end_all, rehearsed_memory

FILES_PER_SWEEP = 20
FETCHES_PER_SWEEP = 1
REHEARSALS_PER_SWEEP = 1

log = structlog.get_logger()


def run(runtime: Runtime) -> None:
    """Serve the maintenance queue until told to stop, with the sweep's clock in a thread of this process."""
    app = create_app(runtime.settings)
    slow = Lock()

    @app.task(name=INSPECT_FILE)
    def inspect_file(file_id: str) -> None:
        files.ensure_inspected(runtime, file_id)

    def one_at_a_time(work: Callable[[], None]) -> None:
        """So that a thread stays free for inspections and the sweep; what is turned away is sent again by it."""
        if slow.acquire(blocking=False):
            try:
                work()
            finally:
                slow.release()

    @app.task(name=FETCH_FILE)
    def fetch_file(file_id: str) -> None:
        one_at_a_time(lambda: hub_files.fetch(runtime, file_id))

    @app.task(name=REHEARSE)
    def rehearse(rehearsal_id: str) -> None:
        one_at_a_time(lambda: rehearsals.answer(runtime, rehearsal_id, rehearsed_memory))

    @app.task(name=SWEEP)
    def sweep_for_lost() -> None:
        sweep(runtime)

    clock = EmbeddedService(app, thread=True, scheduler_cls=Scheduler)  # in memory: a missed sweep needs no making up
    worker_ready.connect(lambda **_: clock.start(), weak=False)

    def end_work() -> int:
        """What is cut short here is sent again by the sweep."""
        clock.service.stop()
        end_all()
        return 0

    serve(
        app,
        name="maintenance",
        queue=MAINTENANCE_QUEUE,
        concurrency=2,
        log_level=runtime.settings.log_level,
        end_work=end_work,
    )


def sweep(runtime: Runtime) -> None:
    """Take jobs back from lost workers, send again what the broker has lost, and forget what is out of date."""
    settings = runtime.settings
    started_at = monotonic()
    for job_id in runtime.database.run(lambda session: lease.reclaim_expired(session, settings)):
        log.warning("lease_expired", job_id=job_id)
    resend(runtime)
    for key in runtime.database.run(lambda session: expire_checkpoints(session, settings)):
        runtime.store.delete(key)
    oldest = utc_now() - timedelta(seconds=settings.retry_window_seconds)
    runtime.database.run(lambda session: forget_before(session, oldest))
    runtime.database.run(lambda session: rehearsals.forget_old(session, utc_now()))
    runtime.database.run(lambda session: report_sweep(session, platform.node(), monotonic() - started_at))


def resend(runtime: Runtime) -> None:
    """Send as many nudges as there are queued jobs above waiting messages: any nudge starts any job of its queue."""
    with runtime.database.read() as session:
        jobs = queries.queued(session)
        waiting_files = uninspected(session, FILES_PER_SWEEP)
        waiting_fetches = unfetched(session, FETCHES_PER_SWEEP)
        waiting_rehearsals = unanswered(session, REHEARSALS_PER_SWEEP)
    broker = Redis.from_url(runtime.settings.resolved_redis_url)
    try:
        nudges: list[Nudge] = []
        for device_class in {device_class for _, device_class in jobs}:
            queue = training_queue(device_class)
            ids = [job_id for job_id, job_class in jobs if job_class == device_class]
            nudges += [Nudge(RUN_JOB, queue, job_id) for job_id in ids[broker.llen(queue) :]]
        if broker.llen(MAINTENANCE_QUEUE) == 0:
            nudges += [Nudge(INSPECT_FILE, MAINTENANCE_QUEUE, file_id) for file_id in waiting_files]
            nudges += [Nudge(FETCH_FILE, MAINTENANCE_QUEUE, file_id) for file_id in waiting_fetches]
            nudges += [Nudge(REHEARSE, MAINTENANCE_QUEUE, rehearsal_id) for rehearsal_id in waiting_rehearsals]
    finally:
        broker.close()
    runtime.publisher(nudges)
