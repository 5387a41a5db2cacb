"""Models that the planner has no formula of are planned from training steps that a worker dry-runs.

A dry run loads torch and takes half a minute, so no request runs or awaits one. It is asked for, a worker answers it
(worker/dry_runs.py), and whoever asks again later finds the answer.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import orjson
from sqlalchemy.orm import Session

from core.accounts.limits import check_limit
from core.db.base import utc_now
from core.db.serialization import deserialize, serialize
from core.db.session import database_now
from core.db.upsert import insert_or_ignore
from core.errors import ErrorBody, InvalidModelError, InvalidRequestError, NotYetError, ServiceUnavailableError
from core.plans import queries
from core.plans.models import DryRunRow
from core.queue.messages import DRY_RUN, MAINTENANCE_QUEUE, Nudge, enqueue_after_commit
from core.renewal import CLAIMED, renewed
from core.runtime import Runtime
from planner.memory.dry_run import DryRunMemory, DryRunQuestion
from planner.options import Decides, RequestedConfig

MOST_WAITING = 50  # dry runs that may be asked for and unanswered at once
MOST_WAITING_EACH = 5  # of one organization
KEPT = timedelta(days=7)  # answers; a plan keeps its own copy
REFUSALS_KEPT = timedelta(minutes=10)  # what failed may have failed for want of memory or time
RETRY_AFTER_SECONDS = 20


def memory_for(runtime: Runtime, organization_id: str, question: DryRunQuestion) -> DryRunMemory:
    """The dry-run steps that answer the question.

    Raises NotYetError while a worker dry-runs them, InvalidModelError where they cannot be dry-run,
    LimitReachedError where too many of the organization's wait, and ServiceUnavailableError where too many others do.
    """
    question = replace(question, requested=_deciding(question.requested))
    key = _key(question)
    with runtime.database.read() as session:
        row = session.get(DryRunRow, key)
    if row is None:
        runtime.database.run(lambda session: _ask(session, organization_id, key, question))
    elif row.error is not None:
        refused = deserialize(ErrorBody, row.error)
        raise InvalidModelError(refused.message, code=refused.code, param="model")
    elif row.memory is not None:
        return deserialize(DryRunMemory, row.memory)
    raise NotYetError(
        f"The planner has no formula for {question.config.get('model_type')!r}, so a worker dry-runs its training "
        "steps, which takes about a minute and is done once for a data set. Ask again then.",
        code="dry_run_pending",
        param="model",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def answer_next(runtime: Runtime, dry_run: Callable[[DryRunQuestion], DryRunMemory]) -> bool:
    """Answer the next question that no other worker has, each organization in turn; False where none waits.

    What `dry_run` raises but InvalidRequestError, which is an answer, leaves the question open: the sweep asks again.
    """
    row = runtime.database.run(_claim_next)
    if row is not None:
        _answer(runtime, row, dry_run)
    return row is not None


def answer(runtime: Runtime, dry_run_id: str, dry_run: Callable[[DryRunQuestion], DryRunMemory]) -> None:
    """As `answer_next`, for one question, unless it was answered or another worker has it."""
    row = runtime.database.run(lambda session: _claim(session, dry_run_id))
    if row is not None:
        _answer(runtime, row, dry_run)


def _claim_next(session: Session) -> DryRunRow | None:
    while (dry_run_id := queries.next_dry_run(session, database_now(session))) is not None:
        if (row := _claim(session, dry_run_id)) is not None:
            return row
    return None


def _claim(session: Session, dry_run_id: str) -> DryRunRow | None:
    now = database_now(session)
    if not queries.claim_dry_run(session, dry_run_id, now, now + CLAIMED):
        return None
    return session.get_one(DryRunRow, dry_run_id, populate_existing=True)


def _answer(runtime: Runtime, row: DryRunRow, dry_run: Callable[[DryRunQuestion], DryRunMemory]) -> None:
    """Dry-run a claimed question outside any transaction, and write down what was found."""

    def hold_for(claim: timedelta) -> None:
        runtime.database.run(lambda session: queries.extend_dry_run(session, row.id, database_now(session) + claim))

    memory, error = None, None
    try:
        with renewed(lambda: hold_for(CLAIMED), row.id):
            memory = serialize(dry_run(deserialize(DryRunQuestion, row.question)))
    except InvalidRequestError as refused:
        error = serialize(refused.body)
    finally:
        if memory is None and error is None:
            hold_for(timedelta(0))

    def record(session: Session) -> None:
        kept = session.get(DryRunRow, row.id, with_for_update=True)
        if kept is not None:
            kept.memory, kept.error, kept.finished_at = memory, error, utc_now()

    runtime.database.run(record)


def forget_old(session: Session, now: datetime) -> None:
    """Drop answers that nobody is likely to ask for again, and refusals, so that they are tried anew."""
    queries.delete_dry_runs(session, before=now - KEPT, refused_before=now - REFUSALS_KEPT)


def _ask(session: Session, organization_id: str, key: str, question: DryRunQuestion) -> None:
    check_limit(
        "waiting_dry_runs",
        len(queries.unanswered(session, MOST_WAITING, organization_id)) + 1,
        MOST_WAITING_EACH,
        "Ask again when one of them has been answered.",
    )
    if len(queries.unanswered(session, MOST_WAITING)) == MOST_WAITING:
        raise ServiceUnavailableError(
            f"{MOST_WAITING} models wait to be dry-run, and no more are taken. Try again in some minutes.",
            code="too_many_dry_runs",
            param="model",
        )
    insert_or_ignore(
        session, DryRunRow, id=key, organization_id=organization_id, question=serialize(question), created_at=utc_now()
    )
    enqueue_after_commit(session, Nudge(DRY_RUN, MAINTENANCE_QUEUE, key))


def _deciding(requested: RequestedConfig) -> RequestedConfig:
    """The options that a dry-run step depends on: plans that differ only in others share a dry run.

    The priority chooses among dry-run steps, and they are of one row and of two, from which any micro-batch follows.
    """
    return replace(
        requested.deciding(Decides.MEMORY), priority=RequestedConfig.priority, per_device_train_batch_size=None
    )


def _key(question: DryRunQuestion) -> str:
    return hashlib.sha256(orjson.dumps(serialize(question), option=orjson.OPT_SORT_KEYS)).hexdigest()
