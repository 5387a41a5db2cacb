"""The maintenance worker: it fetches and inspects files, dry-runs models, and sweeps for what was lost."""

import os
import platform
import signal
from datetime import timedelta
from functools import partial
from time import monotonic

import structlog
from redis import Redis

from core.audit import service as audit
from core.datasets import hub_files, inspecting
from core.db.base import utc_now
from core.db.migrate import schema_problem
from core.fleet import service as fleet
from core.fleet.programs import report_sweep
from core.hang_guard import end_when_silent
from core.idempotency.service import forget_before
from core.jobs import lease, queries
from core.limited import Shares
from core.plans import dry_runs, idle
from core.queue.messages import (
    DRY_RUN,
    FETCH_FILE,
    INSPECT_FILE,
    MAINTENANCE_QUEUE,
    RUN_JOB,
    Nudge,
    training_queue,
)
from core.queue.publisher import TIMEOUTS
from core.retention.files import expire_files
from core.retention.jobs import expire_checkpoints, expire_events, expire_models
from core.runtime import Runtime
from core.usage.service import note_storage
from worker.app import create_app, serve
from worker.dry_runs import dry_run_memory, end_all
from worker.lanes import Lane, Periodic
from worker.tidying import remove_old_logs

FETCHES_AT_ONCE = 3
STORAGE_SECONDS = 3600.0  # between two looks at what organizations store
ENDING_SECONDS = 3.0  # for what was cut short to be written down

log = structlog.get_logger()


def run(runtime: Runtime) -> None:
    """Serve the maintenance queue until told to stop.

    A nudge says that there is work of a kind, not which: whose turn it is, the database knows. Each kind has threads of
    its own, so that no kind waits for another, and so has each sweep: lost jobs are taken back whatever else goes on.
    """
    app = create_app(runtime.settings)
    reads = runtime.settings.files_read_at_once
    lanes = {
        INSPECT_FILE: Lane("inspections", partial(inspecting.inspect_next, runtime, all_but_one(reads)), reads),
        FETCH_FILE: Lane(
            "fetches", partial(hub_files.fetch_next, runtime, all_but_one(FETCHES_AT_ONCE)), FETCHES_AT_ONCE
        ),
        DRY_RUN: Lane("dry_runs", lambda: dry_runs.answer_next(runtime, dry_run_memory), 1),
    }
    for name, lane in lanes.items():
        app.task(name=name)(lane.nudge)

    def nudge_all() -> None:
        """In place of messages that were lost."""
        for lane in lanes.values():
            lane.nudge()

    sweeps = [
        Periodic("sweep", lambda: sweep(runtime), runtime.settings.sweep_seconds),
        Periodic("tidying", lambda: tidy(runtime), runtime.settings.sweep_seconds),
        Periodic("storage", lambda: runtime.database.run(note_storage), STORAGE_SECONDS),
        Periodic("nudges", nudge_all, runtime.settings.sweep_seconds),
    ]
    for one in sweeps:
        one.start()
    end_when_silent("sweep", sweeps[0].pulse, runtime.settings.hang_seconds)

    def end_work() -> int:
        """What is cut short here is taken up again, by another or at the next start."""
        for one in sweeps:
            one.stop()
        for lane in lanes.values():
            lane.stop()
        runtime.children.close()
        end_all()
        for lane in lanes.values():
            lane.wait(ENDING_SECONDS)
        return 0

    serve(
        app,
        name="maintenance",
        queues=[MAINTENANCE_QUEUE],
        concurrency=1,
        log_level=runtime.settings.log_level,
        end_work=end_work,
    )


def all_but_one(at_once: int) -> Shares:
    """The shares of a lane where nobody gets the last of several threads."""
    return Shares(max(1, at_once - 1))


def sweep(runtime: Runtime) -> None:
    """Take jobs back from lost workers, and send again what the broker has lost."""
    problem = schema_problem(runtime.database)
    if problem is not None:
        log.error("schema_of_another_release", problem=problem)
        os.kill(os.getpid(), signal.SIGTERM)
        return
    settings = runtime.settings
    started_at = monotonic()
    runtime.database.run(lambda session: lease.reclaim_expired(session, settings))
    resend(runtime)
    runtime.database.run(lambda session: report_sweep(session, platform.node(), monotonic() - started_at))


def tidy(runtime: Runtime) -> None:
    """Forget what is out of date."""
    settings = runtime.settings
    for key in runtime.database.run(lambda session: expire_checkpoints(session, settings)):
        runtime.store.delete(key)
    oldest = utc_now() - timedelta(seconds=settings.retry_window_seconds)
    runtime.database.run(lambda session: forget_before(session, oldest))
    runtime.database.run(lambda session: dry_runs.forget_old(session, utc_now()))
    runtime.database.run(fleet.forget_workers)
    while runtime.database.run(lambda session: idle.forget_idle(session, settings)):
        pass
    while runtime.database.run(lambda session: audit.forget_old(session, settings)):
        pass
    while expire_files(runtime) or expire_models(runtime):
        pass
    while runtime.database.run(lambda session: expire_events(session, settings)):
        pass
    remove_old_logs(settings.data_dir / "logs", settings.log_retention_seconds)


def resend(runtime: Runtime) -> None:
    """Send as many nudges as there are queued jobs above waiting messages: any nudge starts any job of its queue."""
    with runtime.database.read() as session:
        jobs = queries.queued(session)
    broker = Redis.from_url(runtime.settings.resolved_redis_url, **TIMEOUTS)
    try:
        nudges: list[Nudge] = []
        for device_class in {device_class for _, device_class in jobs}:
            queue = training_queue(device_class)
            ids = [job_id for job_id, job_class in jobs if job_class == device_class]
            nudges += [Nudge(RUN_JOB, queue, job_id) for job_id in ids[broker.llen(queue) :]]
    finally:
        broker.close()
    runtime.publisher(nudges)
