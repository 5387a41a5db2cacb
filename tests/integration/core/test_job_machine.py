"""Whatever owners, workers and the sweep do, in whatever order: only moves of the table, one writer, honest books."""

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy.orm import Session

from core.artifacts.store import StoredObject
from core.db.base import utc_now
from core.db.leases import Holder
from core.db.session import Database
from core.errors import ConflictError, ErrorBody, InsufficientCreditsError, StaleLeaseError
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.progress import Metrics, Outcome, PublishedFile
from core.jobs.states import MOVES, JobStatus
from core.jobs.waiting import places
from core.ledger import service as ledger
from core.settings import Settings
from tests.integration.core.queueing import DEVICE_CLASS, QUOTE_CREDITS, add_organization, queue_job

START_CREDITS = 60  # for a few jobs at a time
SECONDS_OF_A_CREDIT = 6  # at 600 credits an hour
NUMBERS = st.integers(min_value=0, max_value=5)
FAILURE = ErrorBody("It broke.", "server_error", None, "training_failed")
OWNERS_FAILURE = ErrorBody("The loss is not finite.", "server_error", None, "loss_diverged")
RESULT = Outcome([PublishedFile("metrics.csv", StoredObject("metrics", 1, "0" * 64))], 100, "Done.")


class Jobs(RuleBasedStateMachine):
    """Random commands on the jobs of two organizations; two workers that may both believe they hold a job."""

    database: Database
    settings: Settings

    @initialize()
    def open(self) -> None:
        with self.database.transaction() as session:
            self.owners = [add_organization(session, START_CREDITS) for _ in range(2)]
        self.jobs: list[tuple[str, str]] = []  # organization, job
        self.leases: list[Lease] = []  # every one that was ever given
        self.status: dict[str, JobStatus] = {}
        self.crashes: dict[str, int] = {}  # of each job since its last new checkpoint
        self.steps: dict[str, int] = {}  # of each job's newest checkpoint

    @rule(owner=st.integers(0, 1))
    def create(self, owner: int) -> None:
        organization_id = self.owners[owner].organization_id
        try:
            job_id = self.database.run(lambda session: queue_job(session, self.settings, self.owners[owner]))
        except InsufficientCreditsError:
            with self.database.read() as session:
                assert ledger.balance(session, organization_id).available_credits < 10
            return
        self.jobs.append((organization_id, job_id))
        self.status[job_id] = JobStatus.QUEUED
        self.crashes[job_id], self.steps[job_id] = 0, -1

    @rule()
    def claim(self) -> None:
        def work(session: Session) -> Lease | None:
            claimed = leases.claim_next(session, self.settings, Holder("worker", ["cpu"]), DEVICE_CLASS)
            return claimed[0] if claimed else None

        with self.database.read() as session:
            held = [session.get_one(Job, job_id) for _, job_id in self.jobs]
            line = {place.position: job_id for job_id, place in places(session, self.settings, held).items()}
        lease = self.database.run(work)
        if lease is not None:
            self.leases.append(lease)
            assert lease.job_id == line[1], "the line that is shown is the line that is served"

    @rule(number=NUMBERS, step=st.integers(1, 50))
    def report_step(self, number: int, step: int) -> None:
        data = {"step": step, "total_steps": 50, "train_loss": 1.0, "valid_loss": None}
        self._as_worker(number, lambda s, held: progress.record_metrics(s, held, [Metrics(data, step)], 1.0))

    @rule(number=NUMBERS, seconds=st.integers(0, 100))
    def renew(self, number: int, seconds: int) -> None:
        self._as_worker(number, lambda s, held: leases.renew(s, self.settings, held, seconds))

    @rule(number=NUMBERS)
    def release(self, number: int) -> None:
        self._as_worker(number, lambda s, held: leases.release(s, held, "Let go"))

    @rule(number=NUMBERS)
    def die_and_start_again(self, number: int) -> None:
        before = {job_id: self._job(job_id).status for _, job_id in self.jobs}
        lease = self._as_worker(number, lambda s, held: leases.start_again(s, self.settings, held, "died"))
        if lease is not None and before[lease.job_id] is JobStatus.RUNNING:
            self.crashes[lease.job_id] += 1

    @rule(number=NUMBERS, step=st.integers(1, 50))
    def checkpoint(self, number: int, step: int) -> None:
        def work(session: Session, held: Lease) -> None:
            stored = StoredObject(f"{held.job_id}/{step}", 1, "0" * 64)
            progress.record_checkpoint(session, held, step, stored, {"train_loss": 1.0})

        lease = self._as_worker(number, work)
        if lease is not None and step > self.steps[lease.job_id]:
            self.crashes[lease.job_id], self.steps[lease.job_id] = 0, step

    @rule(number=NUMBERS, failure=st.sampled_from([FAILURE, OWNERS_FAILURE]))
    def fail(self, number: int, failure: ErrorBody) -> None:
        self._as_worker(number, lambda s, held: leases.fail(s, held, failure))

    @rule(number=NUMBERS)
    def succeed(self, number: int) -> None:
        self._as_worker(number, lambda s, held: progress.succeed(s, held, RESULT))

    @rule(number=NUMBERS)
    def lose_the_worker(self, number: int) -> None:
        def work(session: Session) -> list[str]:
            if self.jobs:
                job = session.get_one(Job, self.jobs[number % len(self.jobs)][1])
                if job.lease_token is not None:
                    job.lease_expires_at = utc_now() - timedelta(seconds=1)
            return leases.reclaim_expired(session, self.settings)

        before = {job_id: self._job(job_id).status for _, job_id in self.jobs}
        for job_id in self.database.run(work):
            self.crashes[job_id] += before[job_id] is JobStatus.RUNNING

    @rule(number=NUMBERS, verb=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, number: int, verb: str) -> None:
        if not self.jobs:
            return
        organization_id, job_id = self.jobs[number % len(self.jobs)]
        before = self._job(job_id).status

        def work(session: Session) -> None:
            match verb:
                case "cancel":
                    jobs.cancel_job(session, organization_id, job_id)
                case "pause":
                    jobs.pause_job(session, organization_id, job_id)
                case _:
                    jobs.resume_job(session, self.settings, organization_id, job_id)

        try:
            self.database.run(work)
        except ConflictError:
            assert self._job(job_id).status is before

    @invariant()
    def only_moves_of_the_table(self) -> None:
        for _, job_id in getattr(self, "jobs", []):
            now, before = self._job(job_id).status, self.status[job_id]
            reachable = {before} | {target for source, target in MOVES if source is before}
            # One command may move twice: a worker that lost the job to its owner, or to the queue.
            reachable |= {target for source, target in MOVES if source in reachable}
            assert now in reachable, f"{before} -> {now}"
            self.status[job_id] = now

    @invariant()
    def only_crashes_wear_a_job_out(self) -> None:
        for _, job_id in getattr(self, "jobs", []):
            job, is_worn_out = self._job(job_id), self.crashes[job_id] >= self.settings.max_attempts
            assert job.attempts == self.crashes[job_id]
            assert is_worn_out == (job.error is not None and job.error["code"] == "too_many_attempts")

    @invariant()
    def what_is_held_belongs_to_jobs_that_are_not_finished(self) -> None:
        for owner in getattr(self, "owners", []):
            mine = [
                self._job(job_id) for organization_id, job_id in self.jobs if organization_id == owner.organization_id
            ]
            with self.database.read() as session:
                balance = ledger.balance(session, owner.organization_id)
            assert balance.held_credits == sum(job.quote_credits for job in mine if not job.status.is_finished)
            charged = sum(job.charged_credits or 0 for job in mine)
            assert balance.available_credits == START_CREDITS - balance.held_credits - charged
            assert all((job.charged_credits or 0) <= job.quote_credits for job in mine)
            failed = [job for job in mine if job.status is JobStatus.FAILED]
            assert all(job.charged_credits == self._cost(job) for job in failed)

    def teardown(self) -> None:
        if not hasattr(self, "jobs"):
            return
        for organization_id, job_id in self.jobs:
            if not self._job(job_id).status.is_finished:
                self.database.run(lambda session, o=organization_id, j=job_id: jobs.cancel_job(session, o, j))
            if self._job(job_id).status is JobStatus.CANCELLING:
                newest = next(lease for lease in reversed(self.leases) if lease.job_id == job_id)
                self.database.run(lambda session, lease=newest: leases.release(session, lease, "Let go"))
            assert self._job(job_id).status.is_finished
        for owner in self.owners:
            with self.database.read() as session:
                assert ledger.balance(session, owner.organization_id).held_credits == 0

    def _cost(self, job: Job) -> int:
        """Of a failed job, in credits: 0 where the service failed."""
        code = job.error["code"] if job.error is not None else None
        is_charged = code == OWNERS_FAILURE.code or (code == "too_many_attempts" and self.steps[job.id] >= 0)
        return min(QUOTE_CREDITS, math.ceil(job.used_seconds / SECONDS_OF_A_CREDIT)) if is_charged else 0

    def _as_worker(self, number: int, work: Callable[[Session, Lease], Any]) -> Lease | None:
        """Write with one of the leases that were ever given; only the newest of a job that is leased may succeed.

        Returns the lease where it did.
        """
        if not self.leases:
            return None
        lease = self.leases[number % len(self.leases)]
        newest = next(held for held in reversed(self.leases) if held.job_id == lease.job_id)
        may_write = lease == newest and self._job(lease.job_id).status in JobStatus.leased()
        try:
            self.database.run(lambda session: work(session, lease))
        except StaleLeaseError:
            assert not may_write
            return None
        assert may_write
        return lease

    def _job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)


@pytest.fixture
def service_settings(tmp_path: Any) -> Settings:
    """Fewer crashes than the default, so that random commands reach the last."""
    return Settings(data_dir=tmp_path, max_attempts=3)


def test_no_order_of_commands_loses_a_job_or_its_credits(database: Database, service_settings: Settings) -> None:
    machine = type("TheseJobs", (Jobs,), {"database": database, "settings": service_settings})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_pauses_drains_and_put_back_jobs_are_no_crashes(database: Database) -> None:
    shipped = Settings()
    with database.transaction() as session:
        owner = add_organization(session, QUOTE_CREDITS)
    job_id = database.run(lambda session: queue_job(session, shipped, owner))

    def claim() -> Lease:
        claimed = database.run(
            lambda session: leases.claim_next(session, shipped, Holder("worker", ["cpu"]), DEVICE_CLASS)
        )
        assert claimed is not None, "it is in the queue"
        return claimed[0]

    for number in range(10):
        lease = claim()
        if number % 2:
            database.run(lambda session: jobs.pause_job(session, owner.organization_id, job_id))
        database.run(lambda session, held=lease: leases.release(session, held, "The worker shuts down"))
        if number % 2:
            database.run(lambda session: jobs.resume_job(session, shipped, owner.organization_id, job_id))
    lease = claim()
    assert database.run(lambda session: progress.succeed(session, lease, RESULT)).status is JobStatus.SUCCEEDED


def test_one_tenants_many_jobs_do_not_starve_anothers_one(database: Database, service_settings: Settings) -> None:
    with database.transaction() as session:
        many, one = (add_organization(session, 10_000) for _ in range(2))
    for _ in range(20):
        database.run(lambda session: queue_job(session, service_settings, many))
    late = database.run(lambda session: queue_job(session, service_settings, one))
    with database.read() as session:
        place = places(session, service_settings, [session.get_one(Job, late)])[late]
    assert place.position == 2
    assert place.starts_at is None, "there is no worker"
    served = []
    for _ in range(2):
        claimed = database.run(
            lambda session: leases.claim_next(session, service_settings, Holder("worker", ["cpu"]), DEVICE_CLASS)
        )
        assert claimed is not None
        served.append(claimed[1].id)
    assert served[1] == late
