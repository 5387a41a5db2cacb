"""A backup is made while the service runs, and put back elsewhere: rows, objects, books and running jobs."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from sqlalchemy import text
from typer.testing import CliRunner, Result

from cli.main import build
from core.accounts import service as accounts
from core.accounts.models import User
from core.accounts.service import Actor
from core.artifacts.store import ArtifactStore
from core.backup import service as backups
from core.datasets import service as files
from core.db.base import utc_now
from core.db.leases import Holder
from core.db.migrate import pending, script_config, upgrade
from core.db.session import open_engine
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.jobs.states import JobStatus
from core.ledger import service as ledger
from core.reconciliation.service import verify
from core.runtime import Runtime, open_runtime
from core.settings import Settings
from tests.databases import new_postgres
from tests.integration.api.server import running_application
from tests.integration.core.queueing import add_organization, add_worker, queue_job

ADAPTER = bytes(range(256)) * 5000  # more than one chunk


@dataclass(frozen=True)
class Life:
    """What was there when the backup was made."""

    actor: Actor
    key: str
    succeeded: str
    running: str
    checkpoint_key: str
    file_key: str
    balance: ledger.Balance


@dataclass(frozen=True)
class Place:
    """Settings of one installation, as variables of the command line."""

    settings: Settings
    variables: dict[str, str]

    def run(self, *arguments: str) -> Result:
        """A command of `tunewright` there."""
        return CliRunner().invoke(build(list(arguments)), list(arguments), env=self.variables)


@pytest.fixture
def database_kind() -> str:
    """The database of places whose test says nothing else."""
    return "sqlite"


@pytest.fixture
def places(
    request: pytest.FixtureRequest, database_kind: str, tmp_path: Path, valkey_url: str, bucket: Any, s3_endpoint: str
) -> Iterator[Callable[[str, str], Place]]:
    """`places(name, store)`: a new installation on this kind of database and of store."""
    open_databases = []

    def place(name: str, store: str = "local") -> Place:
        data = tmp_path / name
        variables = {"TUNEWRIGHT_DATA_DIR": str(data), "TUNEWRIGHT_REDIS_URL": valkey_url}
        if database_kind == "postgresql":
            database = new_postgres(request.getfixturevalue("postgres_server"))
            open_databases.append(database)
            variables["TUNEWRIGHT_DATABASE_URL"] = database.__enter__()
        if store == "s3":
            variables |= {
                "TUNEWRIGHT_STORE_URL": f"s3://{bucket.name}/{name}",
                "TUNEWRIGHT_S3_ENDPOINT_URL": s3_endpoint,
            }
        values: dict[str, Any] = {name.removeprefix("TUNEWRIGHT_").lower(): value for name, value in variables.items()}
        return Place(Settings(**values), variables)

    yield place
    for database in open_databases:
        database.__exit__(None, None, None)


def live(runtime: Runtime) -> Life:
    """A job that succeeded, one that runs and has a checkpoint, one that waits, and a file."""
    upgrade(runtime.settings.resolved_database_url)
    database, store = runtime.database, runtime.store
    with database.transaction() as session:
        actor = add_organization(session, 1000)
        add_worker(session, "worker-1")
        key = accounts.create_api_key(session, session.get_one(User, actor.user_id), "mine").secret
        succeeded, running, _ = (queue_job(session, runtime.settings, actor) for _ in range(3))
    first, second = (_claim(runtime) for _ in range(2))
    assert (first.job_id, second.job_id) == (succeeded, running)
    published = [
        progress.PublishedFile(name, store.put(f"{first.storage_prefix(actor.organization_id)}/{name}", [content]))
        for name, content in {"adapter.zip": ADAPTER, "metrics.csv": b"step,train_loss\n1,1.0\n"}.items()
    ]
    database.run(lambda s: progress.succeed(s, first, progress.Outcome(published, processed_tokens=9, message="Good")))
    checkpoint = _store_checkpoint(runtime, actor, second, 4)
    upload = files.store_upload(runtime, actor.organization_id, "rows.jsonl", [b'{"text": "a"}\n'])
    database.run(lambda s: files.create_file(s, actor.organization_id, upload))
    with database.read() as session:
        balance = ledger.balance(session, actor.organization_id)
    return Life(actor, key, succeeded, running, checkpoint, upload.stored.key, balance)


def _claim(runtime: Runtime) -> leases.Lease:
    claimed = runtime.database.run(lambda s: leases.claim_next(s, runtime.settings, Holder("worker-1", ["cpu"]), "cpu"))
    assert claimed is not None
    return claimed[0]


def _store_checkpoint(runtime: Runtime, actor: Actor, held: leases.Lease, step: int) -> str:
    stored = runtime.store.put(f"{held.storage_prefix(actor.organization_id)}/step-{step}.tar", [b"state"])
    runtime.database.run(lambda s: progress.record_checkpoint(s, held, step, stored, {"train_loss": 1.0}))
    return stored.key


def content(store: ArtifactStore, key: str) -> bytes:
    with store.open(key) as file:
        return file.read()


@pytest.mark.parametrize(
    ("database_kind", "store", "name"), [("sqlite", "local", "backup"), ("postgresql", "s3", "backup.tar")]
)
def test_a_service_is_put_back_elsewhere_with_its_models_books_and_jobs(
    places: Callable[..., Place], tmp_path: Path, store: str, name: str
) -> None:
    here, there, backup = places("here", store), places("there", store), str(tmp_path / name)
    runtime = open_runtime(here.settings)
    life = live(runtime)
    made = here.run("backup", backup)
    assert made.exit_code == 0, made.output
    assert "objects" in made.output
    runtime.close()

    done = there.run("restore", backup)
    assert done.exit_code == 0, done.output
    assert "1 running jobs go on" in done.output
    with running_application(there.settings) as service:
        with service.runtime.database.snapshot() as session:
            assert verify(session).faults == ()
            assert ledger.balance(session, life.actor.organization_id) == life.balance
            running = jobs.get_job(session, life.actor.organization_id, life.running)
            assert (running.status, running.attempts, running.lease_token) == (JobStatus.QUEUED, 0, None)
        assert content(service.runtime.store, life.checkpoint_key) == b"state"
        assert content(service.runtime.store, life.file_key) == b'{"text": "a"}\n'
        claimed = _claim(service.runtime)
        assert claimed.job_id == life.running, "the oldest in the queue"
        headers = {"authorization": f"Bearer {life.key}"}
        with httpx.Client(base_url=service.base_url, headers=headers, follow_redirects=True) as client:
            listed = client.get(f"/v1/fine_tuning/jobs/{life.succeeded}/artifacts").json()["data"]
            adapter = client.get(f"/v1/fine_tuning/jobs/{life.succeeded}/artifacts/adapter.zip")
        assert adapter.headers["etag"] == f'"{hashlib.sha256(ADAPTER).hexdigest()}"'
        assert adapter.content == ADAPTER
        assert {one["name"] for one in listed} == {"adapter.zip", "metrics.csv"}


def test_what_the_service_removed_meanwhile_is_said_and_what_was_lost_is_an_error(
    places: Callable[..., Place], tmp_path: Path
) -> None:
    here, there, backup = places("here"), places("there"), tmp_path / "backup"
    runtime = open_runtime(here.settings)
    life = live(runtime)
    runtime.store.delete(life.file_key)  # no row says so: it is lost
    lossy = here.run("backup", str(backup))
    assert lossy.exit_code == 1
    assert (
        f"1 objects are not in the store as the database says, and not in the backup: {life.file_key}" in lossy.output
    )

    runtime.store.put(life.file_key, [b'{"text": "b"}\n'])  # not what was uploaded
    damaged = here.run("backup", str(backup))
    assert damaged.exit_code == 1
    runtime.store.put(life.file_key, [b'{"text": "a"}\n'])
    assert here.run("backup", str(backup)).exit_code == 0

    manifest = json.loads((backup / "manifest.json").read_text())
    taken = {path.relative_to(backup).as_posix() for path in backup.rglob("*") if path.is_file()}
    named = {f"objects/{one['key']}" for one in manifest["objects"]} | {one["name"] for one in manifest["dump"]}
    assert taken == named | {"manifest.json"}, "of the earlier backups nothing is left"

    (backup / "objects" / life.checkpoint_key).write_bytes(b"rotten")
    done = there.run("restore", str(backup))
    assert done.exit_code == 1
    assert f"1 objects are damaged or lost: {life.checkpoint_key}" in done.output
    assert "1 checkpoints are not in the backup and are forgotten" in done.output
    runtime.close()


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"])
def test_a_database_with_rows_is_kept_unless_told_otherwise(places: Callable[..., Place], tmp_path: Path) -> None:
    here, backup = places("here"), str(tmp_path / "backup.tar")
    runtime = open_runtime(here.settings)
    life = live(runtime)
    assert here.run("backup", backup, "--database-only").exit_code == 0
    with runtime.database.transaction() as session:
        ledger.grant(session, life.actor.organization_id, 5, idempotency_key="later")
    if here.settings.resolved_database_url.startswith("postgresql"):
        in_use = here.run("restore", backup, "--replace")
        assert "other connection(s) use this database" in str(in_use.exception)
    runtime.close()

    refused = here.run("restore", backup)
    assert refused.exit_code == 1
    assert "The database is not empty" in str(refused.exception)
    done = here.run("restore", backup, "--replace", "--database-only")
    assert done.exit_code == 0, done.output
    runtime = open_runtime(here.settings)
    with runtime.database.read() as session:
        assert ledger.balance(session, life.actor.organization_id) == life.balance
    assert content(runtime.store, life.file_key) == b'{"text": "a"}\n', "objects were left alone"
    runtime.close()


def test_a_backup_of_a_newer_release_or_without_an_end_is_refused(places: Callable[..., Place], tmp_path: Path) -> None:
    here, there, backup = places("here"), places("there"), tmp_path / "backup"
    upgrade(here.settings.resolved_database_url)
    assert here.run("backup", str(backup)).exit_code == 0
    manifest = json.loads((backup / "manifest.json").read_text())
    (backup / "manifest.json").write_text(json.dumps(manifest | {"revision": "9999", "release": "99.0"}))
    assert "The backup is of release 99.0" in str(there.run("restore", str(backup)).exception)
    table = backup / manifest["dump"][0]["name"]
    (backup / "manifest.json").write_text(json.dumps(manifest))
    table.write_bytes(table.read_bytes() + b"\n")
    assert "is not what was written" in str(there.run("restore", str(backup)).exception)
    (backup / "manifest.json").unlink()
    assert "There is no complete backup" in str(there.run("restore", str(backup)).exception)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    assert "holds other things" in str(here.run("backup", str(tmp_path / "other")).exception)
    assert not list(there.settings.data_dir.glob("tunewright.db*")), "nothing was made"


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"])
def test_a_backup_of_an_older_release_is_migrated(places: Callable[..., Place], tmp_path: Path) -> None:
    here, there, backup = places("here"), places("there"), tmp_path / "backup"
    runtime = open_runtime(here.settings)
    life = live(runtime)
    runtime.close()
    engine, config = open_engine(here.settings.resolved_database_url), script_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0015")
    engine.dispose()
    _back_up_as_it_is(here, backup)
    assert json.loads((backup / "manifest.json").read_text())["revision"] == "0015"
    done = there.run("restore", str(backup))
    assert done.exit_code == 0, done.output
    assert pending(there.settings.resolved_database_url) == ()
    runtime = open_runtime(there.settings)
    with runtime.database.snapshot() as session:
        assert jobs.get_job(session, life.actor.organization_id, life.running).status is JobStatus.QUEUED
        assert session.scalar(text("select count(*) from job_events")) > 3
        assert verify(session).faults == ()
    with runtime.database.transaction() as session:  # the triggers are there again
        ledger.grant(session, life.actor.organization_id, 5, idempotency_key=f"later {utc_now()}")
    runtime.close()


def _back_up_as_it_is(place: Place, backup: Path) -> None:
    """What the older release's own command did: this one's refuses a schema that is not its own."""
    runtime = open_runtime(place.settings)
    backups.back_up(runtime, backup)
    runtime.close()
