"""The Celery application. Messages are nudges: what to do, and who may do it, the database says.

A message is acknowledged when it is received, not when its work is done: with late acknowledgement the broker would
hand a job that outlasts the visibility timeout to a second worker. A nudge lost on the way is sent again by the sweep.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence

import structlog
from celery import Celery
from celery.signals import worker_shutting_down

from core.queue.messages import MAINTENANCE_QUEUE
from core.queue.publisher import celery_client
from core.settings import Settings

LEAVING_SECONDS = 5.0

log = structlog.get_logger()


def create_app(settings: Settings) -> Celery:
    """The application of one worker process; tasks are added by `worker.tasks`."""
    app = celery_client(settings.resolved_redis_url)
    app.conf.update(
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        task_default_queue=MAINTENANCE_QUEUE,
    )
    return app


def serve(
    app: Celery, *, name: str, queues: Sequence[str], concurrency: int, log_level: str, end_work: Callable[[], int]
) -> None:
    """Consume queues in this process, with threads, until SIGTERM or SIGINT; running tasks end first.

    `end_work` asks them to, and returns this process's exit code when all is written down; it runs in a thread, as a
    signal may come while the main thread holds any lock. A broker that is away or refuses us can keep Celery for
    minutes from looking whether it should stop, so this process ends LEAVING_SECONDS after its work has, whatever the
    broker does.
    """

    def leave() -> None:
        exit_code = end_work()
        threading.Event().wait(LEAVING_SECONDS)
        log.warning("left_without_the_broker", waited_seconds=LEAVING_SECONDS)
        logging.shutdown()
        os._exit(exit_code)

    def begin_to_leave(**_: object) -> None:
        threading.Thread(target=leave, name="leave", daemon=True).start()

    worker_shutting_down.connect(begin_to_leave)
    app.worker_main(
        [
            "worker",
            *("--hostname", f"{name}@%h"),
            *("--queues", ",".join(queues)),
            *("--pool", "threads"),
            *("--concurrency", str(concurrency)),
            *("--loglevel", log_level),
            "--without-gossip",
            "--without-mingle",
        ]
    )
