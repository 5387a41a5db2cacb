"""Which losses may be read beside each other: those over the same held-out rows."""

from collections.abc import Iterable
from string import ascii_uppercase

from core.db.serialization import deserialize
from core.jobs.evaluation import HeldOut
from core.jobs.models import Job


def held_out_of(job: Job) -> HeldOut | None:
    """What a job is measured on; None before its rows are read, and where nothing is held out."""
    return deserialize(HeldOut, job.held_out) if job.held_out else None


def are_comparable(left: Job, right: Job) -> bool:
    """Whether the validation losses of two jobs are over the same rows, as the same tokens."""
    first, second = held_out_of(left), held_out_of(right)
    return first is not None and second is not None and first.sha256 == second.sha256


def loss_marks(jobs: Iterable[Job]) -> dict[str, str]:
    """A letter for the held-out rows of each job with a loss, by job id; empty where all losses compare."""
    measured = {job.id: held_out_of(job) for job in jobs if job.valid_loss is not None}
    # What is not known compares with nothing.
    rows = {job_id: found.sha256 if found else job_id for job_id, found in measured.items()}
    letters = {
        one: _letter(number) for number, one in enumerate(sorted(set(rows.values())))
    }  # in any order of the list
    return {job_id: letters[one] for job_id, one in rows.items()} if len(letters) > 1 else {}


def _letter(number: int) -> str:
    return ascii_uppercase[number % len(ascii_uppercase)] + "′" * (number // len(ascii_uppercase))
