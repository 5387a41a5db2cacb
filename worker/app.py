"""The Celery application. Messages are nudges: what to do, and who may do it, the database says.

A message is acknowledged when it is received, not when its work is done: with late acknowledgement the broker would
hand a job that outlasts the visibility timeout to a second worker. A nudge lost on the way is sent again by the sweep.
"""

from celery import Celery

from core.queue.messages import MAINTENANCE_QUEUE
from core.queue.publisher import celery_client
from core.settings import Settings


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


def serve(app: Celery, *, name: str, queue: str, concurrency: int, log_level: str) -> None:
    """Consume one queue in this process, with threads, until SIGTERM or SIGINT; running tasks end first."""
    app.worker_main(
        [
            "worker",
            *("--hostname", f"{name}@%h"),
            *("--queues", queue),
            *("--pool", "threads"),
            *("--concurrency", str(concurrency)),
            *("--loglevel", log_level),
            "--without-gossip",
            "--without-mingle",
        ]
    )
