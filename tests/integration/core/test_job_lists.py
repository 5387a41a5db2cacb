"""Lists of jobs read page by page: every job once, in the order asked for, whatever happens meanwhile."""

from collections.abc import Iterator

import pytest

from core.accounts.service import Actor
from core.artifacts.store import StoredObject
from core.db.leases import Holder
from core.db.session import Database
from core.errors import ConflictError, InvalidRequestError, NotFoundError
from core.events import queries as event_queries
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import queries as job_queries
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.progress import Outcome, PublishedFile
from core.jobs.states import JobSort, JobStatus
from core.ledger import service as ledger
from core.ledger.models import TransactionKind
from core.registry import queries as registry
from core.registry.queries import ModelSort
from core.runtime import Runtime, open_runtime
from core.settings import Settings
from tests.integration.core.queueing import DEVICE_CLASS, QUOTE_CREDITS, add_organization, queue_job

LOSSES = (2.0, None, 1.0, 1.0, 0.1 + 0.2, None, 3.0)
STATUSES = (JobStatus.SUCCEEDED, JobStatus.QUEUED, JobStatus.FAILED, JobStatus.PAUSED)


@pytest.fixture
def owner(database: Database, settings: Settings) -> Actor:
    """The owner of seven jobs that differ in everything that they can be sorted by, or are equal in it."""
    with database.transaction() as session:
        owner = add_organization(session, 1000)
        for number, loss in enumerate(LOSSES):
            job = session.get_one(Job, queue_job(session, settings, owner))
            job.suffix = ("Beta", None, "alpha")[number % 3]
            job.valid_loss, job.step = loss, number % 4
            job.status = STATUSES[number % len(STATUSES)]
            job.charged_credits = number if number % 2 else None
    return owner


@pytest.fixture
def runtime(database: Database, settings: Settings) -> Iterator[Runtime]:
    """Everything open, on the same database."""
    runtime = open_runtime(settings)
    yield runtime
    runtime.close()


def read_all(database: Database, owner: Actor, sort: JobSort, *, is_descending: bool) -> list[Job]:
    """Every page of two, one after another."""
    found: list[Job] = []
    after = None
    while True:
        with database.read() as session:
            page = jobs.search_jobs(
                session, owner.organization_id, sort=sort, is_descending=is_descending, after=after, limit=2
            )
        found += page.rows
        assert page.has_more == (page.next_after is not None)
        if page.next_after is None:
            return found
        after = page.next_after


@pytest.mark.parametrize("sort", JobSort)
def test_each_order_gives_every_job_once(database: Database, owner: Actor, sort: JobSort) -> None:
    ascending = read_all(database, owner, sort, is_descending=False)
    descending = read_all(database, owner, sort, is_descending=True)
    for found in (ascending, descending):
        assert len({job.id for job in found}) == len(found) == len(LOSSES)
    if sort is JobSort.LOSS:
        assert [job.valid_loss for job in ascending] == [0.1 + 0.2, 1.0, 1.0, 2.0, 3.0, None, None]
        assert [job.valid_loss for job in descending] == [3.0, 2.0, 1.0, 1.0, 0.1 + 0.2, None, None]
    else:
        assert [job.id for job in descending] == [job.id for job in reversed(ascending)]
    if sort is JobSort.STATUS:
        places = [list(JobStatus).index(job.status) for job in ascending]
        assert places == sorted(places)
    if sort is JobSort.CREDITS:
        credits_of = [job.quote_credits if job.charged_credits is None else job.charged_credits for job in ascending]
        assert credits_of == sorted(credits_of)


def test_a_page_goes_on_where_it_was_though_jobs_move(database: Database, owner: Actor) -> None:
    def page(after: str | None) -> list[Job]:
        with database.read() as session:
            found = jobs.search_jobs(
                session, owner.organization_id, sort=JobSort.LOSS, is_descending=False, after=after, limit=3
            )
        places.append(found.next_after)
        return list(found.rows)

    places: list[str | None] = []
    first = page(None)
    with database.transaction() as session:
        session.get_one(Job, first[-1].id).valid_loss = 9.0  # the job that the page ended with
    assert [job.valid_loss for job in page(places[0])] == [2.0, 3.0, 9.0]


@pytest.mark.parametrize("after", ["nonsense", "one~ftjob-1", "~"])
def test_a_place_that_no_page_gave_is_refused(database: Database, owner: Actor, after: str) -> None:
    with database.read() as session, pytest.raises(InvalidRequestError, match="first page"):
        jobs.search_jobs(session, owner.organization_id, sort=JobSort.LOSS, after=after, limit=2)


def test_a_deleted_job_is_gone_and_the_books_are_as_they_were(
    database: Database, settings: Settings, runtime: Runtime
) -> None:
    with database.transaction() as session:
        owner = add_organization(session, 1000)
        job_id = queue_job(session, settings, owner)
    with pytest.raises(ConflictError, match="is queued"):
        jobs.delete_job(runtime, owner.organization_id, job_id)

    stored = runtime.store.put("jobs/metrics", [b"step"])
    with database.transaction() as session:
        claimed = leases.claim_next(session, settings, Holder("worker_test", ["cpu"]), DEVICE_CLASS)
        assert claimed is not None
        outcome = Outcome([PublishedFile("metrics.csv", StoredObject("jobs/metrics", 4, stored.sha256))], 100, "Done.")
        job = progress.succeed(session, claimed[0], outcome)
        model_id = job.fine_tuned_model
    jobs.delete_job(runtime, owner.organization_id, job_id)

    assert not runtime.store.exists("jobs/metrics")
    with database.read() as session:
        with pytest.raises(NotFoundError):
            jobs.get_job(session, owner.organization_id, job_id)
        assert jobs.search_jobs(session, owner.organization_id, limit=5).rows == []
        assert job_queries.artifacts(session, job_id) == []
        assert event_queries.messages(session, job_id, 5) == []
        assert registry.model_of(session, owner.organization_id, str(model_id)) is None
        held = ledger.statement(session, owner.organization_id, after=None, limit=5).rows[-2].transaction
        assert (held.kind, held.job_id, held.amount_credits) == (TransactionKind.HOLD, job_id, QUOTE_CREDITS)
    with pytest.raises(NotFoundError):
        jobs.delete_job(runtime, owner.organization_id, job_id)


@pytest.mark.parametrize("sort", ModelSort)
def test_models_are_listed_in_every_order(database: Database, settings: Settings, sort: ModelSort) -> None:
    with database.transaction() as session:
        owner = add_organization(session, 1000)
        for number in range(3):
            queue_job(session, settings, owner)
            claimed = leases.claim_next(session, settings, Holder("worker_test", ["cpu"]), DEVICE_CLASS)
            assert claimed is not None
            file = PublishedFile("metrics.csv", StoredObject(f"jobs/{number}", 1, "0" * 64))
            progress.succeed(session, claimed[0], Outcome([file], 100, "Done.")).valid_loss = (2.0, None, 1.0)[number]
    found, after = [], None
    for _ in range(3):
        with database.read() as session:
            page = registry.search(
                session,
                owner.organization_id,
                text="smollm2",
                base_model="smollm2-135m-instruct",
                sort=sort,
                is_descending=False,
                after=after,
                limit=1,
            )
        found += page.rows
        after = page.next_after
    assert after is None
    assert len({model.id for model in found}) == 3
