"""What may be sent, and the rule that it is collected during a transaction and sent after the commit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

RUN_JOB = "tunewright.run_job"
INSPECT_FILE = "tunewright.inspect_file"
FETCH_FILE = "tunewright.fetch_file"
DRY_RUN = "tunewright.dry_run"
MAINTENANCE_QUEUE = "maintenance"


@dataclass(frozen=True)
class Nudge:
    """A Celery task to start: by name, because the sender does not know the worker's code."""

    task: str
    queue: str
    argument: str  # an id, never content


@dataclass(frozen=True)
class Wake:
    """A Redis publication: whoever waits on `channel` looks into the database again."""

    channel: str


Message = Nudge | Wake
Publisher = Callable[[Sequence[Message]], None]


def enqueue_after_commit(session: Session, message: Message) -> None:
    """Send `message` after this session's transaction commits; never, if it rolls back."""
    messages: list[Message] = session.info.setdefault("messages", [])
    if message not in messages:
        messages.append(message)


def training_queue(device_class: str) -> str:
    """The queue that workers with this class of device listen on."""
    return f"train.{device_class}"


def job_channel(job_id: str) -> str:
    """Where news of one job is announced: to event streams, and to the worker that runs it."""
    return f"tunewright:job:{job_id}"
