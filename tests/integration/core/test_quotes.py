"""A quote is a cap: what a job is charged, whatever becomes of it."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from core.artifacts.objects import StoredObject
from core.db.base import utc_now
from core.db.leases import Holder
from core.db.serialization import deserialize
from core.db.session import Database
from core.errors import ConflictError, ErrorBody, InvalidRequestError, NotFoundError
from core.idempotency.service import CreateRequest
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.progress import Metrics
from core.jobs.service import JobRequest
from core.jobs.settlement import due_credits, released_credits, used_credits
from core.jobs.states import JobStatus
from core.ledger import service as ledger
from core.ledger.service import Balance
from core.plans.models import Plan
from core.runtime import Runtime
from core.settings import Settings
from planner.setup import TrainingSetup
from tests.integration.core.books import (
    Owner,
    create_job,
    open_organization,
    open_runtime,
    prove,
    save_plan,
    small_plan,
)

QUOTE = 40
SECONDS_OF_A_CREDIT = 6  # at 600 credits an hour


@pytest.fixture
def owner(database: Database) -> Owner:
    """An organization with 100 credits."""
    return open_organization(database, 100)


@pytest.fixture
def runtime(database: Database, tmp_path: Path) -> Runtime:
    """What services are given."""
    return open_runtime(database, tmp_path)


def _claimed(database: Database, runtime: Runtime, owner: Owner, used_seconds: float) -> Lease:
    with database.transaction() as session:
        create_job(session, runtime, owner, save_plan(session, owner, QUOTE).id)
        claimed = leases.claim_next(session, Settings(), Holder("worker_test", ["cpu"]), "cpu")
        assert claimed is not None
        leases.renew(session, Settings(), claimed[0], used_seconds)
        return claimed[0]


def _fail(session: Session, owner: Owner, lease: Lease) -> None:
    leases.fail(session, lease, ErrorBody("It broke.", "server_error", None, "training_failed"))


def _diverge(session: Session, owner: Owner, lease: Lease) -> None:
    leases.fail(session, lease, ErrorBody("Not finite.", "server_error", None, "loss_diverged"))


def _delete_data(session: Session, owner: Owner, lease: Lease) -> None:
    leases.fail(session, lease, NotFoundError("The file was deleted.", code="file_not_found").body)


def _wear_out(session: Session, owner: Owner, lease: Lease) -> None:
    while leases.start_again(session, Settings(), lease, "died"):
        pass


def _wear_out_behind_a_checkpoint(session: Session, owner: Owner, lease: Lease) -> None:
    step = [Metrics({"step": 3, "total_steps": 9, "train_loss": 1.0}, 64)]
    progress.record_metrics(session, lease, step, None)
    progress.record_checkpoint(session, lease, 3, StoredObject("key", 1, "0"), {})
    leases.renew(session, Settings(), lease, 5)  # what was lost with the process is not charged
    _wear_out(session, owner, lease)


def _cancel(session: Session, owner: Owner, lease: Lease) -> None:
    jobs.cancel_job(session, owner.organization_id, lease.job_id)
    leases.release(session, lease, "asked to")


def _pause_then_cancel(session: Session, owner: Owner, lease: Lease) -> None:
    jobs.pause_job(session, owner.organization_id, lease.job_id)
    leases.release(session, lease, "asked to")
    jobs.cancel_job(session, owner.organization_id, lease.job_id)


@pytest.mark.parametrize(
    ("end", "used", "charged"),
    [
        (_fail, 10, 0),
        (_fail, 1000, 0),
        (_wear_out, 10, 0),
        (_wear_out_behind_a_checkpoint, 10, 10),
        (_diverge, 10, 10),
        (_diverge, 1000, QUOTE),
        (_delete_data, 10, 10),
        (_cancel, 0, 0),
        (_cancel, 10, 10),
        (_cancel, 10.1, 11),
        (_cancel, 1000, QUOTE),
        (_pause_then_cancel, 10, 10),
        (_pause_then_cancel, 1000, QUOTE),
    ],
)
def test_what_a_job_is_charged(
    database: Database,
    runtime: Runtime,
    owner: Owner,
    end: Callable[[Session, Owner, Lease], None],
    used: float,
    charged: int,
) -> None:
    lease = _claimed(database, runtime, owner, used * SECONDS_OF_A_CREDIT)
    database.run(lambda session: end(session, owner, lease))
    with database.read() as session:
        job = session.get_one(Job, lease.job_id)
        assert (job.charged_credits, released_credits(job)) == (charged, QUOTE - charged)
        assert ledger.balance(session, owner.organization_id) == Balance(100 - charged, 0)
    assert prove(database).faults == ()


@pytest.mark.parametrize(("taken_step", "charged"), [(None, 0), (1, 5), (2, 10)])
def test_a_checkpoint_that_was_taken_is_paid_for_though_the_service_fails_later(
    database: Database, runtime: Runtime, owner: Owner, taken_step: int | None, charged: int
) -> None:
    lease = _claimed(database, runtime, owner, 10 * SECONDS_OF_A_CREDIT)
    organization_id = owner.organization_id
    ids = {}
    for step in (1, 2):
        metrics = [Metrics({"step": step, "total_steps": 9, "train_loss": 1.0}, 64)]
        stored = StoredObject(f"key-{step}", 1, "0")
        with database.transaction() as session:
            progress.record_metrics(session, lease, metrics, None)
            progress.record_checkpoint(session, lease, step, stored, {})
    with database.read() as session:
        for row in jobs.list_checkpoints(session, organization_id, lease.job_id, after=None, limit=10).rows:
            ids[row.step] = row.id
    if taken_step is not None:
        database.run(lambda session: jobs.take_checkpoint(session, organization_id, lease.job_id, ids[taken_step]))
    database.run(lambda session: leases.renew(session, Settings(), lease, 4 * SECONDS_OF_A_CREDIT))
    database.run(lambda session: _fail(session, owner, lease))
    with database.read() as session:
        assert session.get_one(Job, lease.job_id).charged_credits == charged
    for step, checkpoint_id in ids.items():
        with database.transaction() as session:
            if taken_step is not None and step <= taken_step:
                jobs.take_checkpoint(session, organization_id, lease.job_id, checkpoint_id)
            else:
                with pytest.raises(ConflictError, match="was not charged"):
                    jobs.take_checkpoint(session, organization_id, lease.job_id, checkpoint_id)
    assert prove(database).faults == ()


def test_time_lost_to_the_service_is_not_charged(database: Database, runtime: Runtime, owner: Owner) -> None:
    lease = _claimed(database, runtime, owner, 10)
    settings = Settings()

    def step(number: int, used_seconds: float) -> None:
        data = {"step": number, "total_steps": 9, "train_loss": 1.0, "valid_loss": None}
        metrics = [Metrics(data, number)]
        database.run(lambda session: progress.record_metrics(session, lease, metrics, None, used_seconds))

    def used() -> float:
        with database.read() as session:
            return session.get_one(Job, lease.job_id).used_seconds

    def renew(used_seconds: float) -> None:
        database.run(lambda session: leases.renew(session, settings, lease, used_seconds))

    step(1, 4)
    step(2, 6)
    renew(30)  # frozen, behind the newest step
    assert used() == 50
    with database.transaction() as session:
        session.get_one(Job, lease.job_id).lease_expires_at = utc_now() - timedelta(minutes=1)
        leases.reclaim_expired(session, settings)
    assert used() == 20
    claimed = database.run(lambda session: leases.claim_next(session, settings, Holder("successor", ["cpu"]), "cpu"))
    assert claimed is not None
    lease = claimed[0]
    renew(100)  # loading again
    step(2, 5)  # again
    assert used() == 20
    step(3, 5)
    renew(7)
    assert used() == 27
    database.run(lambda session: leases.release(session, lease, "The worker shuts down"))
    assert used() == 20, "each step is charged once, and step 3 was not charged yet"


def test_what_was_used_is_told_where_it_passes_the_quote(database: Database, runtime: Runtime, owner: Owner) -> None:
    lease = _claimed(database, runtime, owner, (QUOTE + 3) * SECONDS_OF_A_CREDIT)
    with database.read() as session:
        job = session.get_one(Job, lease.job_id)
        quote = small_plan().quote
        assert (used_credits(job, quote), due_credits(job, quote)) == (QUOTE + 3, QUOTE)


def test_a_paused_job_shows_what_it_used_and_keeps_its_hold(database: Database, runtime: Runtime, owner: Owner) -> None:
    lease = _claimed(database, runtime, owner, 10 * SECONDS_OF_A_CREDIT)
    with database.transaction() as session:
        jobs.pause_job(session, owner.organization_id, lease.job_id)
        leases.release(session, lease, "asked to")
    with database.read() as session:
        job = session.get_one(Job, lease.job_id)
        assert (job.status, job.charged_credits, released_credits(job)) == (JobStatus.PAUSED, None, None)
        assert used_credits(job, small_plan().quote) == 10
        assert ledger.balance(session, owner.organization_id) == Balance(100 - QUOTE, QUOTE)


def test_a_smaller_micro_batch_leaves_the_quote_alone(database: Database, runtime: Runtime, owner: Owner) -> None:
    lease = _claimed(database, runtime, owner, 1000 * SECONDS_OF_A_CREDIT)
    with database.transaction() as session:
        setup = deserialize(TrainingSetup, session.get_one(Job, lease.job_id).setup)
        leases.step_down(session, lease, setup, "Out of memory: half as many rows at once")
        leases.release(session, lease, "starting again")
        assert session.get_one(Job, lease.job_id).quote_credits == QUOTE
        assert ledger.balance(session, owner.organization_id) == Balance(100 - QUOTE, QUOTE)


def test_a_plan_runs_at_its_price_while_its_quote_stands(database: Database, runtime: Runtime, owner: Owner) -> None:
    with database.transaction() as session:
        plan = save_plan(session, owner, QUOTE)
        assert create_job(session, runtime, owner, plan.id).quote_credits == QUOTE
        plan.expires_at = utc_now() - timedelta(seconds=1)
        with pytest.raises(ConflictError) as raised:
            create_job(session, runtime, owner, plan.id)
        assert raised.value.code == "quote_expired"


def test_a_quote_stands_for_15_minutes() -> None:
    assert Settings().quote_seconds == 15 * 60


def test_a_dearer_quote_than_allowed_is_refused_by_name(database: Database, runtime: Runtime, owner: Owner) -> None:
    request = CreateRequest("key_test", "/v1/fine_tuning/jobs", "x", None, is_retry=False, window_seconds=600)
    with database.transaction() as session:
        plan_id = save_plan(session, owner, QUOTE).id

    def create(limit: int) -> Job:
        asked = JobRequest(plan_id=plan_id, max_credits=limit)
        return database.run(lambda session: jobs.create_job(session, runtime, owner.actor, asked, request))

    with pytest.raises(InvalidRequestError, match=r"40 credits, above your max_credits of 39") as raised:
        create(QUOTE - 1)
    assert (raised.value.code, raised.value.param) == ("quote_above_max_credits", "max_credits")
    assert create(QUOTE).quote_credits == QUOTE
    with database.read() as session:
        assert session.get_one(Plan, plan_id).quote_credits == QUOTE
