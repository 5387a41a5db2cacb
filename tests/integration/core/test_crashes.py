"""A process that dies between any two statements leaves sound books, on both databases.

Each case is a real process that ends itself with `os._exit` just before its n-th statement, just before the commit, or
just behind it, before its messages leave; n grows until the work gets through. After each death the books must be
sound, and doing the work again must do it once.
"""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select

from core.artifacts.objects import StoredObject
from core.db.leases import Holder
from core.db.session import Database
from core.errors import ErrorBody, StaleLeaseError
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger import codes, service
from core.ledger.service import Balance
from core.settings import Settings
from tests.integration.core.books import (
    Owner,
    create_job,
    open_organization,
    open_runtime,
    prove,
    save_plan,
)

CRASHED = 23
MOST_POINTS = 200
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.integration.core.test_crashes"])

Work = Callable[..., None]


def crashes(url: str, work: Work, *arguments: Any) -> int:
    """Run `work` again and again in processes that die one point later each time, until one gets through.

    Returns how many died.
    """
    for point in range(1, MOST_POINTS):
        process = FORKSERVER.Process(target=_die_at, args=(url, point, work, arguments))
        process.start()
        process.join()
        if process.exitcode == 0:
            return point - 1
        assert process.exitcode == CRASHED
        database = Database(url, lambda _: None)
        assert prove(database).faults == (), f"after dying at point {point}"
        database.close()
    raise AssertionError("the work never got through")


def _die_at(url: str, point: int, work: Work, arguments: tuple[Any, ...]) -> None:
    passed = 0

    def step(*_: object) -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os._exit(CRASHED)

    database = Database(url, step)  # the messages leave behind the commit
    event.listen(database.engine, "before_cursor_execute", step)
    event.listen(database.engine, "commit", step)
    work(database, *arguments)
    database.close()


def _create(database: Database, directory: Path, owner: Owner, plan_id: str, code: str) -> None:
    runtime = open_runtime(database, directory)

    def create(session: Any) -> None:
        codes.redeem_for_job(session, owner.organization_id, code)
        create_job(session, runtime, owner, plan_id, key="the one")

    database.run(create)


def test_a_job_is_created_and_its_quote_held_once(database: Database, database_url: str, tmp_path: Path) -> None:
    owner = open_organization(database)
    with database.transaction() as session:
        plan_id = save_plan(session, owner, 40).id
        codes.create_code(session, "hundred", 100)
    assert crashes(database_url, _create, tmp_path, owner, plan_id, "hundred") > 20
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 1
        assert service.balance(session, owner.organization_id) == Balance(60, 40)


def _succeed(database: Database, lease: Lease) -> None:
    stored = StoredObject(f"jobs/{lease.job_id}/metrics.csv", 10, "0" * 64)
    outcome = progress.Outcome([progress.PublishedFile("metrics.csv", stored)], 256, "All good")
    database.run(lambda session: progress.succeed(session, lease, outcome))


def _fail(database: Database, lease: Lease) -> None:
    body = ErrorBody("It broke.", "server_error", None, "training_failed")
    database.run(lambda session: leases.fail(session, lease, body))


def _cancel(database: Database, lease: Lease) -> None:
    database.run(lambda session: leases.release(session, lease, "asked to"))


def _once(database: Database, work: Work, lease: Lease) -> None:
    """As a restarted worker does it: what was done already is not its job any more."""
    try:
        work(database, lease)
    except StaleLeaseError:
        return


@pytest.mark.parametrize(
    ("work", "charged", "status"),
    [
        (_succeed, 20, JobStatus.SUCCEEDED),
        (_fail, 0, JobStatus.FAILED),
        (_cancel, 20, JobStatus.CANCELLED),
    ],
    ids=["succeed", "fail", "cancel"],
)
def test_a_job_is_settled_once(
    database: Database, database_url: str, tmp_path: Path, work: Work, charged: int, status: JobStatus
) -> None:
    owner = open_organization(database, 100)
    with database.transaction() as session:
        plan_id = save_plan(session, owner, 40).id
        create_job(session, open_runtime(database, tmp_path), owner, plan_id)
        claimed = leases.claim_next(session, Settings(), Holder("worker_test", ["cpu"]), "cpu")
        assert claimed is not None
        lease, job = claimed
        job.used_seconds = 120.0  # at 600 credits an hour
        if work is _cancel:
            job.status = JobStatus.CANCELLING
    assert crashes(database_url, _once, work, lease) > 8
    with database.read() as session:
        job = session.get_one(Job, lease.job_id)
        assert (job.status, job.charged_credits) == (status, charged)
        assert service.balance(session, owner.organization_id) == Balance(100 - charged, 0)
