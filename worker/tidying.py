"""Removing what killed processes left behind, when a worker starts and then daily."""

import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy.exc import DBAPIError

from core.db.base import utc_now
from core.errors import StoreError
from core.jobs.models import Job
from core.retention.leftovers import recorded_later, unrecorded
from core.runtime import Runtime
from core.scratch import remove_leftovers

DAY = timedelta(days=1)
_RUN_DIRECTORY = re.compile(r"(ftjob-[^-]+)-(lease_.+)")  # as worker.prepare.run_directory

log = structlog.get_logger()


def tidy_in_thread(work: Callable[[Runtime], None], runtime: Runtime) -> None:
    """Do `work` now and then daily, in a thread that ends with the process."""

    def keep_tidy() -> None:
        never = threading.Event()
        while True:
            try:
                work(runtime)
            except StoreError as error:
                log.warning("not_tidied", error=error.message)
            except (DBAPIError, OSError) as error:
                log.warning("not_tidied", error=str(error))
            never.wait(DAY.total_seconds())

    threading.Thread(target=keep_tidy, name="tidying", daemon=True).start()


def remove_old_logs(directory: Path, seconds: float) -> None:
    """Remove the logs of `tunewright up` that were moved aside so long ago."""
    for path in directory.glob("*.log.1"):
        with suppress(FileNotFoundError):  # another has removed it
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink()


def tidy_store(runtime: Runtime) -> None:
    """Remove scratch copies, streams that never became objects, and objects of no row, all a day old."""
    moment = utc_now() - DAY
    remove_leftovers()
    incomplete = runtime.store.discard_incomplete(moment)
    removed = 0
    for keys in recorded_later(runtime.store.keys_before(moment)):
        with runtime.database.read() as session:
            leftovers = unrecorded(session, keys)
        for key in leftovers:
            runtime.store.delete(key)
        removed += len(leftovers)
    if incomplete or removed:
        log.info("store_tidied", incomplete=incomplete, unrecorded=removed)


def tidy_runs(runtime: Runtime) -> None:
    """Remove old scratch copies, and the run directories, with their data, of leases that are over."""
    remove_leftovers()
    if not runtime.settings.runs_dir.is_dir():
        return
    for directory in runtime.settings.runs_dir.iterdir():
        named = _RUN_DIRECTORY.fullmatch(directory.name)
        if named is None:
            continue
        with runtime.database.read() as session:
            job = session.get(Job, named[1])
        if job is None or job.lease_token != named[2]:
            shutil.rmtree(directory, ignore_errors=True)
            log.info("run_directory_removed", directory=directory.name)
