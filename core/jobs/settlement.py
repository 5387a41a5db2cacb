"""Turning used device time into credits when a job ends."""

import math

from sqlalchemy.orm import Session

from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger import service as ledger
from core.plans.service import training_plan
from planner.plans import Quote

SECONDS_PER_HOUR = 3600


def used_credits(job: Job, quote: Quote) -> int:
    """What the device time used so far costs at the quote's rate, rounded up, and at most the quote."""
    return min(job.quote_credits, math.ceil(job.used_seconds * quote.credits_per_hour / SECONDS_PER_HOUR))


def released_credits(job: Job) -> int | None:
    """What came back of the quote when the job ended; None until then."""
    return None if job.charged_credits is None else job.quote_credits - job.charged_credits


def settle(session: Session, job: Job) -> None:
    """Settle a finished job: nothing for a failure, else what it used, never above the quote."""
    used = 0 if job.status is JobStatus.FAILED else used_credits(job, training_plan(job.plan).quote)
    job.charged_credits = ledger.settle(session, job.organization_id, job.id, used)
