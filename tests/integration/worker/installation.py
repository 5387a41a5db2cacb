"""One worker's parts in this process, with real training children: where faults can be put exactly."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from core.accounts import service as accounts
from core.accounts.service import Actor
from core.artifacts.store import ArtifactStore
from core.datasets import inspecting
from core.datasets import service as files
from core.datasets.models import FilePurpose
from core.db.leases import Holder
from core.events import service as events
from core.events.models import JobEvent
from core.fleet import service as fleet
from core.fleet.service import DeviceReport, WorkerReport
from core.idempotency.service import CreateRequest
from core.ids import new_id
from core.jobs import lease as leases
from core.jobs import service as jobs
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.service import JobRequest
from core.ledger import service as ledger
from core.ledger.service import Balance
from core.planning import service as planning
from core.plans.service import PlanRequest
from core.runtime import Runtime, open_runtime
from core.settings import Settings
from planner.devices import Device, read_cpu
from planner.options import RequestedConfig
from tests.databases import migrated_sqlite
from worker.protocol import RunRequest
from worker.supervisor import Supervisor

GIB = 1024**3
CREDITS = 10_000
CPU = Device(
    *(0, "cpu", "Test CPU", "cpu", 16 * GIB, 12 * GIB, None, "cpu"),
    multiplies_bfloat16=read_cpu().multiplies_bfloat16,
)


class Watched(Supervisor):
    """A supervisor whose requests a test may change: a memory cap, a faster schedule."""

    def __init__(
        self, runtime: Runtime, lease: Lease, job: Job, device: Device, change: Callable[[RunRequest], RunRequest]
    ) -> None:
        super().__init__(runtime, lease, job, [device])
        self._change = change

    def _request(self, *arguments: Any) -> RunRequest:
        return self._change(super()._request(*arguments))


@dataclass(frozen=True)
class Installation:
    """A database, a store and a broker, with one organization."""

    runtime: Runtime
    actor: Actor

    def submit(self, rows: Sequence[dict[str, Any]], requested: RequestedConfig, model: str = "tiny") -> str:
        """Upload rows and create a job on the model; its id."""
        content = "\n".join(json.dumps(row) for row in rows).encode()
        organization_id = self.actor.organization_id
        upload = files.store_upload(self.runtime, organization_id, "rows.jsonl", [content])
        self.runtime.database.run(
            lambda session: files.create_file(session, organization_id, upload, FilePurpose.FINE_TUNE).id
        )
        inspecting.ensure_inspected(self.runtime, upload.id)
        said = WorkerReport("worker-test", "here", os.getpid(), [DeviceReport(CPU)], {})
        self.runtime.database.run(lambda session: fleet.report(session, said))
        draft = planning.draft_plan(self.runtime, self.actor, PlanRequest(model, upload.id, requested=requested))
        create = CreateRequest(self.actor.credential, "/jobs", new_id("body-"), None, False, 60)
        request = JobRequest(draft=draft, seed=7)
        return self.runtime.database.run(
            lambda session: jobs.create_job(session, self.runtime, self.actor, request, create).id
        )

    def supervise(
        self,
        job_id: str,
        *,
        change: Callable[[RunRequest], RunRequest] = lambda request: request,
        store: ArtifactStore | None = None,
        started: Callable[[Supervisor], None] = lambda _: None,
        device: Device = CPU,
    ) -> Job:
        """Claim the job, which must be next, and run it to the end of this worker's hold on it.

        `started` is given the supervisor before it begins; `device` is what it takes for its own.
        """
        runtime = self.runtime if store is None else replace(self.runtime, store=store)
        claimed = runtime.database.run(
            lambda session: leases.claim_next(
                session, runtime.settings, Holder("worker-test", ["cpu"]), CPU.device_class
            )
        )
        assert claimed is not None
        lease, job = claimed
        assert job.id == job_id
        supervisor = Watched(runtime, lease, job, device, change)
        started(supervisor)
        supervisor.supervise()
        return self.job(job_id)

    def job(self, job_id: str) -> Job:
        """The job as it is now."""
        with self.runtime.database.read() as session:
            return jobs.get_job(session, self.actor.organization_id, job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        """All events of the job, oldest first."""
        with self.runtime.database.read() as session:
            return list(events.following(session, job_id, last_id=None, limit=5000))

    def messages(self, job_id: str) -> str:
        """What the job's owner reads."""
        return "\n".join(event.message for event in self.events(job_id))

    def steps(self, job_id: str) -> list[int]:
        """The training steps with numbers, in the order they were reported."""
        data = [event.data for event in self.events(job_id) if event.data]
        return [entry["step"] for entry in data if entry.get("train_loss") is not None and not entry.get("valid_loss")]

    def balance(self) -> Balance:
        """The organization's credits."""
        with self.runtime.database.read() as session:
            return ledger.balance(session, self.actor.organization_id)


def trainers() -> list[psutil.Process]:
    """The training children of this process: forked from its fork server, each leads a process group of its own."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            is_forked = "multiprocessing.forkserver" in " ".join(child.cmdline()) and child.ppid() != os.getpid()
            if is_forked and os.getpgid(child.pid) == child.pid:
                found.append(child)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@contextmanager
def installation(directory: Path, models_dir: Path, redis_url: str, **settings: Any) -> Iterator[Installation]:
    """An installation on SQLite in `directory`, with credits to spend."""
    # Shorter times: what they end is ended sooner, and more of it.
    values: dict[str, Any] = {
        "data_dir": directory,
        "models_dir": models_dir,
        "redis_url": redis_url,
        "lease_seconds": 20.0,
        "heartbeat_seconds": 0.5,
        "checkpoint_seconds": 0.0,
        "stop_grace_seconds": 5.0,
    }
    migrated_sqlite(directory / "tunewright.db")
    runtime = open_runtime(Settings(**(values | settings)))
    try:
        with runtime.database.transaction() as session:
            owner = accounts.ensure_owner(session)
            actor = Actor(owner.organization_id, owner.id, is_admin=True, credential="key_test")
            ledger.grant(session, owner.organization_id, CREDITS, idempotency_key=new_id("test:"))
        yield Installation(runtime, actor)
    finally:
        runtime.close()
