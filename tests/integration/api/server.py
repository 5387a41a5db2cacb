"""The real application on a real port, and organizations to use it with."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import uvicorn
from sqlalchemy import select

from api.app import create_app
from api.request_heads import BoundedHttp
from core.accounts import service as accounts
from core.accounts.models import Scope
from core.db.leases import Holder
from core.db.migrate import upgrade
from core.errors import TrainingError
from core.fleet import service as fleet
from core.ids import new_id
from core.jobs import lease, progress
from core.jobs.evaluation import HeldOut
from core.jobs.lease import Lease
from core.ledger import service as ledger
from core.ledger.models import LedgerTransaction
from core.runtime import Runtime
from core.settings import Settings
from planner.devices import Device
from tests.people import add_user
from tests.waiting import wait_for

GIB = 1024**3
CPU = Device(
    index=0,
    kind="cpu",
    name="Test CPU",
    uuid="cpu",
    total_bytes=16 * GIB,
    free_bytes=12 * GIB,
    compute_capability=None,
    device_class="cpu",
)


@dataclass(frozen=True)
class Tenant:
    """An organization, its key, and clients that use it."""

    service: "Service"
    organization_id: str
    user_id: str
    key: str
    client: openai.OpenAI
    http: httpx.Client

    @property
    def transactions(self) -> Sequence[LedgerTransaction]:
        """What was booked for it, oldest first."""
        with self.service.runtime.database.read() as session:
            query = select(LedgerTransaction).where(LedgerTransaction.organization_id == self.organization_id)
            return session.scalars(query.order_by(LedgerTransaction.id)).all()

    def upload(self, rows: Sequence[dict[str, Any]] | bytes, filename: str = "rows.jsonl") -> str:
        """Upload rows as JSON Lines, or bytes as they are; the file's id."""
        content = rows if isinstance(rows, bytes) else "\n".join(json.dumps(row) for row in rows).encode()
        return self.client.files.create(file=(filename, content), purpose="fine-tune").id

    def grant(self, credits_given: int) -> None:
        """Give it credits."""
        self.service.runtime.database.run(
            lambda session: ledger.grant(session, self.organization_id, credits_given, idempotency_key=new_id("test:"))
        )


@dataclass(frozen=True)
class Service:
    """A running application."""

    runtime: Runtime
    settings: Settings
    base_url: str

    @property
    def artifacts(self) -> list[Path]:
        """Every file in the store, finished or not."""
        root = self.settings.data_dir / "artifacts"
        return [path for path in root.rglob("*") if path.is_file()]

    @contextmanager
    def tenant(self, **options: Any) -> Iterator[Tenant]:
        """A new organization with clients that do not retry, unless `options` of the client say so."""
        organization, user, key = self.enrol()
        options = {"max_retries": 0, **options}
        with (
            openai.OpenAI(base_url=f"{self.base_url}/v1", api_key=key, **options) as client,
            httpx.Client(base_url=self.base_url, headers={"authorization": f"Bearer {key}"}, timeout=30) as http,
        ):
            yield Tenant(self, organization, user, key, client, http)

    def enrol(self, *, is_admin: bool = False, scope: Scope = Scope.WRITE) -> tuple[str, str, str]:
        """A new organization: its id, its user's and an API key with this scope."""
        with self.runtime.database.transaction() as session:
            user = add_user(session, is_admin=is_admin)
            return user.organization_id, user.id, accounts.create_api_key(session, user, "test", scope=scope).secret

    def claim(self, job_id: str) -> Lease:
        """Act as the worker that claims this job. Other jobs of the class are claimed on the way and left alone."""
        with self.runtime.database.transaction() as session:
            while (
                claimed := lease.claim_next(session, self.settings, Holder("worker_test", ["cpu"]), "cpu")
            ) is not None:
                if claimed[0].job_id == job_id:
                    return claimed[0]
        raise AssertionError(f"{job_id} was not in the queue")

    def write_metrics(self, held: Lease, step: int) -> None:
        """Act as the worker that reports one step."""
        data = {"step": step, "total_steps": 4, "train_loss": 1.0 / step, "learning_rate": 1e-4}
        self.runtime.database.run(
            lambda session: progress.record_metrics(session, held, [progress.Metrics(data, 64 * step)], 30.0)
        )

    def write_checkpoint(self, held: Lease, step: int, valid_loss: float | None = None) -> None:
        """Act as the worker that stored a checkpoint."""
        stored = self.runtime.store.put(f"jobs/{held.job_id}/{step}", [b"checkpoint"])
        pruned = self.runtime.database.run(
            lambda session: progress.record_checkpoint(
                session,
                held,
                step,
                stored,
                {"train_loss": 1.0 / step} | ({} if valid_loss is None else {"valid_loss": valid_loss}),
            )
        )
        for key in pruned:
            self.runtime.store.delete(key)

    def write_held_out(self, held: Lease, held_out: HeldOut) -> None:
        """Act as the worker that has read the rows."""
        self.runtime.database.run(lambda session: progress.record_held_out(session, held, held_out))

    def fail(self, held: Lease, message: str) -> None:
        """Act as the worker whose run cannot go on."""
        body = TrainingError(message).body
        self.runtime.database.run(lambda session: lease.fail(session, held, body))

    def finish(self, held: Lease) -> None:
        """Act as the worker that publishes its result."""
        store = self.runtime.store
        contents = {"adapter.zip": b"PK adapter", "metrics.csv": b"step,train_loss\n1,1.0\n"}
        published = [
            progress.PublishedFile(name, store.put(f"jobs/{held.job_id}/{name}", [content]))
            for name, content in contents.items()
        ]
        outcome = progress.Outcome(published, processed_tokens=256, message="All good")
        self.runtime.database.run(lambda session: progress.succeed(session, held, outcome))


class _Thread(uvicorn.Server):
    """A server whose signals stay with pytest."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextmanager
def running_application(settings: Settings) -> Iterator[Service]:
    """The application on a free port, on a migrated database and with one device in its fleet."""
    upgrade(settings.resolved_database_url)
    app = create_app(settings)
    config = uvicorn.Config(
        app, port=0, http=BoundedHttp, ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = _Thread(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive(), what="the application")
        port = server.servers[0].sockets[0].getsockname()[1]
        service = Service(app.state.runtime, settings, f"http://127.0.0.1:{port}")
        report_device(service, CPU)
        yield service
    finally:
        server.should_exit = True
        thread.join()


def report_device(service: Service, device: Device, worker_id: str = "worker_test") -> None:
    """Act as a worker's heartbeat."""
    said = fleet.WorkerReport(
        worker_id, "test-host", 4711, [fleet.DeviceReport(device, 2 * GIB, 123.0)], {"torch": "2.13.0"}
    )
    service.runtime.database.run(lambda session: fleet.report(session, said))


class DroppingTransport(httpx2.BaseTransport):
    """A network that loses the response to the first POST: the server did its work, the client does not know."""

    def __init__(self) -> None:
        self._inner = httpx2.HTTPTransport()
        self.dropped: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._inner.handle_request(request)
        if request.method == "POST" and not self.dropped:
            response.read()
            self.dropped.append(response.text)
            response.close()
            raise httpx2.ReadError("the connection was lost")
        return response

    def close(self) -> None:
        self._inner.close()
