"""The migrations make the schema of the models, on both databases, and keep the books append-only."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from core.accounts.models import Scope
from core.accounts.service import Actor, authenticate_key, create_api_key, ensure_owner
from core.artifacts.store import StoredObject
from core.db.leases import Holder
from core.db.migrate import migrating, pending, script_config, upgrade
from core.db.serialization import deserialize
from core.db.session import Database, open_engine
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.jobs.evaluation import Evaluation, Scores
from core.jobs.progress import Outcome, PublishedFile
from core.jobs.states import JobStatus
from core.ledger import service as ledger
from core.ledger.codes import create_code
from core.reconciliation.service import verify
from core.registry.models import FineTunedModel
from core.settings import Settings
from migrations.schema import metadata
from tests.integration.core.queueing import QUOTE_CREDITS, add_organization, queue_job

OF_AN_EARLIER_RELEASE = "0017"


METRICS = {"train_loss": 0.75, "valid_loss": 0.5, "valid_mean_token_accuracy": 0.25}
EVALUATION = Evaluation(Scores({"valid_loss": 2.0}), Scores({"valid_loss": 0.5}, stopped_rate=1.0), answers=4)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the migrated database."""
    upgrade(database_url)
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def downgrade(url: str, revision: str) -> None:
    config = script_config()
    with migrating(url) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def finish(database: Database, settings: Settings) -> None:
    claimed = database.run(lambda session: leases.claim_next(session, settings, Holder("worker-1", ["cpu"]), "cpu"))
    assert claimed is not None
    held, _ = claimed
    stored = StoredObject("key", 1, "0")
    files = [PublishedFile("metrics.csv", stored)]
    outcome = Outcome(files, 100, "Done.", evaluation=EVALUATION)
    database.run(lambda session: progress.record_checkpoint(session, held, 4, stored, METRICS))
    database.run(lambda session: progress.succeed(session, held, outcome))


def test_models_and_migrations_agree(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_upgrade_applies_what_is_pending_once(database_url: str) -> None:
    steps = pending(database_url)
    assert steps[:2] == ("0001", "0002")
    assert upgrade(database_url) == steps
    assert pending(database_url) == ()
    assert upgrade(database_url) == ()


def test_two_upgrades_at_once_make_one_schema(database_url: str) -> None:
    applied: list[tuple[str, ...]] = []
    threads = [Thread(target=lambda: applied.append(upgrade(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(applied) == 4
    assert sum(map(bool, applied)) == 1
    assert pending(database_url) == ()


def test_downgrade_leaves_nothing_behind(database_url: str) -> None:
    upgrade(database_url)
    engine = open_engine(database_url)
    downgrade(database_url, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    engine.dispose()
    assert upgrade(database_url)


def test_what_is_there_survives_every_step_down_and_up(database_url: str, settings: Settings) -> None:
    upgrade(database_url)
    database = Database(database_url, publish=[].extend)
    with database.transaction() as session:
        owner = ensure_owner(session)
        secret = create_api_key(session, owner, "reader", scope=Scope.READ).secret
        actor = Actor(owner.organization_id, owner.id, owner.is_admin, credential="key_test")
        ledger.grant(session, owner.organization_id, 100, idempotency_key="first")
        job_id = queue_job(session, settings, actor)
    downgrade(database_url, "0001")
    upgrade(database_url)
    with database.transaction() as session:
        assert authenticate_key(session, secret).scope is Scope.WRITE, "keys were not told apart in the first release"
        balance = ledger.balance(session, owner.organization_id)
        assert (balance.available_credits, balance.held_credits) == (100 - QUOTE_CREDITS, QUOTE_CREDITS)
        assert jobs.cancel_job(session, owner.organization_id, job_id).learning_rate_factor == 1.0
        ledger.grant(session, owner.organization_id, 11, idempotency_key="second")
        assert ledger.balance(session, owner.organization_id).available_credits == 111
    with database.engine.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.execute(text("delete from ledger_entries"))
    with database.snapshot() as session:
        assert verify(session).faults == ()
    database.close()


def test_queued_and_running_jobs_go_on_behind_a_migration_and_finished_ones_keep_what_they_made(
    database_url: str, settings: Settings
) -> None:
    upgrade(database_url)
    database = Database(database_url, publish=[].extend)
    with database.transaction() as session:
        actor = add_organization(session, 100)
        finished = queue_job(session, settings, actor)
    finish(database, settings)
    with database.transaction() as session:
        running, queued = (queue_job(session, settings, actor) for _ in range(2))
    claimed = database.run(lambda session: leases.claim_next(session, settings, Holder("worker-1", ["cpu"]), "cpu"))
    assert claimed is not None
    held, _ = claimed
    database.run(lambda session: leases.renew(session, settings, held, 5.0))
    downgrade(database_url, OF_AN_EARLIER_RELEASE)
    assert upgrade(database_url)

    with database.read() as session:
        found = {one: jobs.get_job(session, actor.organization_id, one) for one in (running, queued)}
        assert (found[running].status, found[running].used_seconds) == (JobStatus.RUNNING, 5.0)
        assert found[queued].status is JobStatus.QUEUED
        done = jobs.get_job(session, actor.organization_id, finished)
        assert deserialize(Evaluation, done.evaluation) == EVALUATION
        [checkpoint] = jobs.list_checkpoints(session, actor.organization_id, finished, after=None, limit=9).rows
        assert (checkpoint.metrics, checkpoint.valid_loss) == (METRICS, METRICS["valid_loss"])
        assert session.scalars(select(FineTunedModel.valid_loss)).all() == [0.5]
    database.run(lambda session: leases.renew(session, settings, held, 5.0))
    database.run(lambda session: leases.release(session, held, "The worker shuts down"))
    taken = [
        database.run(lambda s: leases.claim_next(s, settings, Holder("worker-2", ["cpu"]), "cpu")) for _ in range(2)
    ]
    assert [one[0].job_id for one in taken if one is not None] == [running, queued]
    for job_id in (running, queued):
        database.run(lambda session, job_id=job_id: jobs.cancel_job(session, actor.organization_id, job_id))
    with database.snapshot() as session:
        assert verify(session).faults == ()
    database.close()


def test_a_failing_step_leaves_the_schema_as_it_was(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("create table workers (stands_in_the_way integer)"))
    with pytest.raises(DBAPIError):
        upgrade(database_url)
    assert inspect(engine).get_table_names() == ["workers"]
    engine.dispose()


@pytest.mark.parametrize("table", ["ledger_transactions", "ledger_entries"])
@pytest.mark.parametrize("change", ["update {} set amount_credits = amount_credits + 1", "delete from {}"])
def test_the_books_refuse_changes(engine: Engine, database_url: str, table: str, change: str) -> None:
    database = Database(database_url, publish=[].extend)
    with database.transaction() as session:
        owner = ensure_owner(session)
        code = create_code(session, "WELCOME", 100)
        ledger.grant(session, owner.organization_id, 100, idempotency_key="first", code_id=code.id)
    with engine.connect() as connection, pytest.raises(DBAPIError, match=f"{table} is append-only"):
        connection.execute(text(change.format(table)))
    with database.read() as session:
        assert ledger.balance(session, owner.organization_id).available_credits == 100
    database.close()
