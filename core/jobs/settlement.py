"""The end of a job, and what its used device time comes to in credits."""

import math

from sqlalchemy.orm import Session

from core.db.serialization import deserialize
from core.errors import ErrorBody, InvalidRequestError
from core.events.models import EventLevel
from core.jobs import queries, tallies, trail
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.jobs.transitions import move
from core.ledger import service as ledger
from core.plans.service import training_plan
from planner.plans import Quote

SECONDS_PER_HOUR = 3600
# Failures that an owner can cause at will, behind checkpoints that can be downloaded: free, they were free training.
OWNERS_ERRORS = InvalidRequestError.type  # their data, model or parameters, found out at run time
WORN_OUT = "too_many_attempts"
OWNERS_CODES = frozenset({"loss_diverged", "unsupported_setup"})


def used_credits(job: Job, quote: Quote) -> int:
    """What the device time used so far comes to at the quote's rate, rounded up, above the quote too."""
    return math.ceil(job.used_seconds * quote.credits_per_hour / SECONDS_PER_HOUR)


def due_credits(job: Job, quote: Quote) -> int:
    """What of that is charged: at most the quote."""
    return min(job.quote_credits, used_credits(job, quote))


def taken_credits(job: Job, quote: Quote) -> int:
    """What led to the newest checkpoint that its owner took comes to; its share of the time until the newest step."""
    if not job.taken_step or not job.step:
        return 0
    seconds = min(job.used_seconds, job.useful_seconds * min(1.0, job.taken_step / job.step))
    return min(job.quote_credits, math.ceil(seconds * quote.credits_per_hour / SECONDS_PER_HOUR))


def released_credits(job: Job) -> int | None:
    """What came back of the quote when the job ended; None until then."""
    return None if job.charged_credits is None else job.quote_credits - job.charged_credits


def is_owners(error: ErrorBody) -> bool:
    """Whether a job's owner can cause this failure at will."""
    return error.type == OWNERS_ERRORS or error.code in OWNERS_CODES


def is_charged(session: Session, job: Job, error: ErrorBody) -> bool:
    """Whether a failed job costs what it used.

    Rows can be written that kill whatever trains on them, so a job that died again and again is charged for what led
    to the checkpoints that its owner can take; without any it left nothing, and is free.
    """
    is_worn_out = error.code == WORN_OUT and bool(queries.stored_checkpoints(session, job.id))
    return is_owners(error) or is_worn_out


def end(session: Session, job: Job, status: JobStatus, message: str, *, level: EventLevel = EventLevel.INFO) -> None:
    """End a job, whose row the caller holds, and settle its credits.

    It costs what it used, never above the quote; for a failure that is not its owner's only what led to the checkpoints
    that its owner took before. Raises ConflictError for a job that cannot end so.
    """
    worker = job.worker_id
    move(session, job, status, message, level=level)
    error = deserialize(ErrorBody, job.error) if job.error else None
    is_free = status is JobStatus.FAILED and not (error and is_charged(session, job, error))
    quote = training_plan(job.plan).quote
    due = taken_credits(job, quote) if is_free else due_credits(job, quote)
    if not is_free:
        job.taken_step = None
    job.charged_credits = ledger.settle(session, job.organization_id, job.id, due)
    tallies.ended(session, job, (error.code or error.type) if error else "")
    trail.say(
        session,
        job,
        "job_ended",
        level="info" if error is None else "warning",
        worker=worker,
        status=status.value,
        code=error.code if error else None,
        step=job.step,
        used_seconds=round(job.used_seconds, 1),
        charged_credits=job.charged_credits,
        quote_credits=job.quote_credits,
    )
