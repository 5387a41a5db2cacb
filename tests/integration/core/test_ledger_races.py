"""The books under real concurrency, in threads and processes, on both databases."""

import multiprocessing
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.db.migrate import upgrade
from core.db.session import Database
from core.errors import ConflictError, InsufficientCreditsError, InvalidRequestError, NotFoundError
from core.jobs import queries as job_queries
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger import codes, service
from core.ledger.models import CodeRedemption, LedgerTransaction
from core.ledger.service import Balance
from tests.integration.core.books import Owner, create_job, open_organization, open_runtime, prove, save_plan

HANDS = 64
PROCESSES = 16
OPERATIONS = 10_000 if os.environ.get("TUNEWRIGHT_THOROUGH") else 2_000
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.integration.core.test_ledger_races"])


@pytest.mark.parametrize("owners", [1, HANDS], ids=["one account", "64 accounts"])
def test_one_single_use_code_and_64_hands(database: Database, owners: int) -> None:
    organizations = [open_organization(database).organization_id for _ in range(owners)] * (HANDS // owners)
    with database.transaction() as session:
        codes.create_code(session, "once", 100, max_redemptions=1)

    def redeem(organization_id: str) -> str:
        try:
            database.run(lambda session: codes.redeem(session, organization_id, " Once "))
        except ConflictError as error:
            return error.code
        return "redeemed"

    with ThreadPoolExecutor(HANDS) as pool:
        outcomes = Counter(pool.map(redeem, organizations))
    assert outcomes == {"redeemed": 1, "code_already_redeemed": HANDS - 1}
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(CodeRedemption)) == 1
    assert prove(database).faults == ()


def test_a_balance_for_ten_jobs_accepts_ten_of_64(database: Database, tmp_path: Path) -> None:
    owner = open_organization(database, 100)
    runtime = open_runtime(database, tmp_path)
    with database.transaction() as session:
        plan_id = save_plan(session, owner, 10).id

    def create(number: int) -> bool:
        try:
            database.run(lambda session: create_job(session, runtime, owner, plan_id, key=str(number)))
        except InsufficientCreditsError:
            return False
        return True

    with ThreadPoolExecutor(HANDS) as pool:
        assert sum(pool.map(create, range(HANDS))) == 10
    with database.read() as session:
        assert service.balance(session, owner.organization_id) == Balance(0, 100)
        assert session.scalar(select(func.count()).select_from(Job)) == 10
    assert prove(database).faults == ()


@pytest.mark.timeout(600)
def test_mixed_operations_of_16_processes_leave_sound_books(database: Database, database_url: str) -> None:
    owners = [open_organization(database, 2_000) for _ in range(4)]
    with database.transaction() as session:
        plans = [save_plan(session, owner, 50).id for owner in owners]
        for number in range(8):
            codes.create_code(session, f"code{number}", 500, max_redemptions=3)
    processes = [
        FORKSERVER.Process(target=_mix, args=(database_url, seed, OPERATIONS // PROCESSES, owners, plans))
        for seed in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    proof = prove(database)
    assert proof.faults == ()
    assert proof.transactions > OPERATIONS // 4
    with database.read() as session:
        kinds = set(session.scalars(select(LedgerTransaction.kind).distinct()))
    assert {kind.value for kind in kinds} == {"grant", "hold", "capture", "release", "refund"}


def _mix(url: str, seed: int, operations: int, owners: list[Owner], plans: list[str]) -> None:
    """One process of many: random verbs on few organizations and codes, so that they meet."""
    chance = random.Random(seed)
    database = Database(url, lambda _: None)
    mine: list[tuple[Owner, str]] = []
    for number in range(operations):
        place = chance.randrange(len(owners))
        owner, plan_id = owners[place], plans[place]
        job_id = f"ftjob-{seed}-{number}"
        draw = chance.random()
        try:
            if draw < 0.35 or not mine:
                database.run(lambda session: _start(session, owner, plan_id, job_id))  # noqa: B023 - run at once
                mine.append((owner, job_id))
            elif draw < 0.65:
                ended = mine.pop(chance.randrange(len(mine)))
                used = chance.choice((0, 10, 50, 90))
                database.run(lambda session: _end(session, *ended, used))  # noqa: B023
            elif draw < 0.75:
                paid = f"ftjob-{chance.randrange(PROCESSES)}-{chance.randrange(operations)}"
                amount = chance.choice((None, 5))
                database.run(lambda session: service.refund(session, paid, amount))  # noqa: B023
            elif draw < 0.9:
                code = f" Code{chance.randrange(9)} "
                database.run(lambda session: codes.redeem(session, owner.organization_id, code))  # noqa: B023
            else:
                key = f"gift-{chance.randrange(200)}-{place}"
                database.run(lambda session: service.grant(session, owner.organization_id, 40, idempotency_key=key))  # noqa: B023
        except (ConflictError, InsufficientCreditsError, InvalidRequestError, NotFoundError):
            continue
    database.close()


def _start(session: Session, owner: Owner, plan_id: str, job_id: str) -> None:
    service.hold(session, owner.organization_id, job_id, 50)
    session.add(
        Job(
            id=job_id,
            organization_id=owner.organization_id,
            user_id=owner.user_id,
            model="smollm2-135m-instruct",
            training_file_id="file-x",
            seed=1,
            plan_id=plan_id,
            setup={},
            device_class="cpu",
            quote_credits=50,
            status=JobStatus.QUEUED,
        )
    )


def _end(session: Session, owner: Owner, job_id: str, used: int) -> None:
    job = job_queries.lock_job(session, job_id)
    assert job is not None
    job.status = JobStatus.CANCELLED
    job.charged_credits = service.settle(session, owner.organization_id, job_id, used)


def test_a_deadlock_is_retried_and_never_shown(postgres_url: str) -> None:
    upgrade(postgres_url)
    database = Database(postgres_url, lambda _: None)
    first, second = (open_organization(database, 10).organization_id for _ in range(2))
    attempts: Counter[str] = Counter()
    both_hold_one = Barrier(2)

    def cross(name: str, one: str, other: str) -> None:
        def work(session: Session) -> None:
            attempts[name] += 1
            service.hold(session, one, f"ftjob-{name}-1", 1)
            if attempts[name] == 1:
                both_hold_one.wait(20)
            service.hold(session, other, f"ftjob-{name}-2", 1)

        database.run(work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(cross, "a", first, second), pool.submit(cross, "b", second, first)]:
            done.result(60)
    assert sorted(attempts.values()) == [1, 2]
    with database.read() as session:
        assert service.balance(session, first) == service.balance(session, second) == Balance(8, 2)
    database.close()


def test_a_serialization_failure_is_retried(postgres_url: str) -> None:
    upgrade(postgres_url)
    database = Database(postgres_url, lambda _: None)
    organization_id = open_organization(database, 10).organization_id
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        service.balance(session, organization_id)
        if tries == 1:  # another transaction commits behind this one's back
            with database.transaction() as other:
                other.execute(text("update organizations set name = 'renamed'"))
        session.execute(text("update organizations set name = 'again'"))

    database.run(work)
    assert tries == 2
    database.close()


def test_another_error_of_the_database_is_not_retried(database: Database) -> None:
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.execute(text("select * from nowhere"))

    with pytest.raises(DBAPIError):
        database.run(work)
    assert tries == 1
