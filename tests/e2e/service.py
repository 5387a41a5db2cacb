"""The real service in real processes: API, training worker, maintenance worker, on free ports."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types.fine_tuning import FineTuningJob
from sqlalchemy import update
from sqlalchemy.orm import Session

from core.accounts import service as accounts
from core.datasets.models import StoredFile
from core.db.base import utc_now
from core.db.migrate import upgrade
from core.db.session import Database
from core.ledger import codes
from core.plans.models import DryRunRow
from core.reconciliation.service import verify
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS, wait_for

CREDIT_CODE = "TESTING"
# Times only, so that what is lost is missed sooner; limits are as they ship: tests/architecture/test_shipped_limits.py.
QUICK = {"LEASE_SECONDS": "3", "HEARTBEAT_SECONDS": "0.5", "SWEEP_SECONDS": "0.5", "CHECKPOINT_SECONDS": "2"}


@dataclass
class Service:
    """A running service and a client that is signed in to it."""

    directory: Path
    environment: dict[str, str]
    base_url: str
    api_key: str
    database: Database
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @cached_property
    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=self.api_key)

    @property
    def http(self) -> httpx.Client:
        """For what the official client lacks."""
        return httpx.Client(base_url=f"{self.base_url}/v1", headers={"authorization": f"Bearer {self.api_key}"})

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process of the service."""
        log = (self.directory / f"{name}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def start_api(self) -> None:
        """Start the API and wait until all that it needs answers."""
        port = str(httpx.URL(self.base_url).port)
        application = ("uvicorn", "api.app:create_app", "--factory", "--port", port, "--log-level", "warning")
        self.start("api", *application)
        wait_for(lambda: _is_ready(self), what="the API", context=self.logs)

    def start_maintenance(self) -> None:
        """Start a maintenance worker and do not wait for it."""
        self.start("maintenance", "worker", "--maintenance")

    def start_worker(self, name: str = "worker") -> subprocess.Popen[bytes]:
        """Start a training worker and wait until it has reported for duty."""
        process = self.launch_worker(name)
        wait_for(lambda: self._knows_worker(process.pid), what=f"{name} to report", context=self.logs)
        return process

    def launch_worker(self, name: str = "worker") -> subprocess.Popen[bytes]:
        """Start a training worker and do not wait for it."""
        return self.start(name, "worker", "--device", "cpu")

    def _knows_worker(self, process_id: int) -> bool:
        with self.http as http:
            return any(row["process_id"] == process_id for row in http.get("/workers").json()["data"])

    def end_claims(self) -> None:
        """Let the claims on files and dry runs run out, as 30 s without their worker do."""
        over = utc_now() - timedelta(seconds=1)

        def work(session: Session) -> None:
            for table in (StoredFile, DryRunRow):
                session.execute(update(table).values(claimed_until=over))

        self.database.run(work)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop a process and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(timeout=PATIENCE_SECONDS)

    def upload(self, rows: list[dict[str, Any]]) -> str:
        """Upload rows as JSON Lines; the file's id."""
        content = "\n".join(json.dumps(row) for row in rows).encode()
        return self.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id

    def create_job(self, rows: list[dict[str, Any]], **extra: Any) -> FineTuningJob:
        """Upload rows and start a job on the tiny model."""
        hyperparameters = extra.pop("hyperparameters", {"n_epochs": 2})
        patient = self.client.with_options(max_retries=20)  # a busy machine's worker may be late to report its device
        return patient.fine_tuning.jobs.create(
            model=extra.pop("model", "tiny"),
            training_file=self.upload(rows),
            seed=7,
            hyperparameters=hyperparameters,
            extra_body={"credit_code": CREDIT_CODE, **extra},
        )

    def wait(self, job_id: str, *statuses: str) -> FineTuningJob:
        """The job as soon as it is in one of the statuses."""
        client = self.client

        def reached() -> FineTuningJob | None:
            job = client.fine_tuning.jobs.retrieve(job_id)
            if job.status in statuses:
                return job
            assert job.status not in ("failed", "cancelled", "succeeded"), f"{job.status}: {job.error}\n{self.logs()}"
            return None

        return wait_for(reached, what=f"{job_id} to be {statuses}", context=self.logs)

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )


def check_books(database: Database) -> None:
    """Prove the books, as `tunewright ledger verify` does."""
    with database.snapshot() as session:
        assert verify(session).faults == ()


@contextmanager
def running_service(
    directory: Path,
    models_dir: Path,
    redis_url: str,
    *,
    database_url: str | None = None,
    pace: Mapping[str, str] = QUICK,
    overrides: Mapping[str, str] | None = None,
    worker: bool = True,
    hub_url: str | None = None,
) -> Iterator[Service]:
    """A service in `directory`, stopped at the end with whatever it started."""
    port = free_port()
    values = {
        "DATA_DIR": str(directory / "data"),
        "MODELS_DIR": str(models_dir),
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url or f"sqlite:///{directory / 'service.db'}",
        "LOG_LEVEL": "INFO",
        **pace,
        **(overrides or {}),
    }
    environment = {
        **os.environ,
        **{f"TUNEWRIGHT_{name}": value for name, value in values.items()},
        "HF_HUB_OFFLINE": "1",
        **({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub_url} if hub_url else {}),
    }
    upgrade(values["DATABASE_URL"])
    database = Database(values["DATABASE_URL"], lambda _: None)
    with database.transaction() as session:
        owner = accounts.ensure_owner(session)
        api_key = accounts.create_api_key(session, owner, "tests").secret
        codes.create_code(session, CREDIT_CODE, 100_000)
    service = Service(directory, environment, f"http://127.0.0.1:{port}", api_key, database)
    try:
        service.start_maintenance()
        service.start_api()
        if worker:
            service.start_worker()
        yield service
        check_books(database)
    finally:
        service.client.close()
        for process in service.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in service.processes.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        database.close()


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.base_url}/readyz").status_code == 200
    except httpx.TransportError:
        return False
