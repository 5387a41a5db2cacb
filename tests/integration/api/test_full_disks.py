"""A full disk is said as what it is, loses nothing, and is over when there is room again."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError

from core.artifacts.local import LocalStore
from core.db.session import is_full
from core.errors import StoreFullError
from core.settings import Settings
from tests.integration.api.server import running_application

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
