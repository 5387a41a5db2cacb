"""A run that is longer than a test has time for: a finished job is given the events of many more steps."""

from core.events import queries
from core.events.models import EventLevel, EventType, JobEvent
from core.ids import new_id
from tests.e2e.service import Service

FIRST_STEP = 1000  # behind the steps that the job has really taken


def add_steps(service: Service, job_id: str, steps: int, peaks: dict[int, float] | None = None) -> None:
    """Record `steps` more steps with a falling loss, but for the `peaks`, by step."""
    with service.database.transaction() as session:
        last = queries.last_sequence(session, job_id)
        session.add_all(
            _step(job_id, last + 1 + number, FIRST_STEP + number, FIRST_STEP + steps, peaks or {})
            for number in range(steps)
        )


def _step(job_id: str, sequence: int, step: int, total_steps: int, peaks: dict[int, float]) -> JobEvent:
    data = {
        "step": step,
        "total_steps": total_steps,
        "train_loss": peaks.get(step, 2.0 + 1000 / step),
        "learning_rate": 1e-4,
        "memory_bytes": 2**30,
        "tokens_per_second": 100.0,
    }
    return JobEvent(
        id=new_id("ftevent-"),
        job_id=job_id,
        sequence=sequence,
        type=EventType.METRICS,
        level=EventLevel.INFO,
        message=f"Step {step}",
        data=data,
    )
