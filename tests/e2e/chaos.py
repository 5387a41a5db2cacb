"""Killing parts of a running service at random, and comparing what comes out with an undisturbed run."""

import io
import os
import random
import signal
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.e2e.rows import chat_rows
from tests.e2e.service import Service
from tests.waiting import wait_for

STEPS = 160  # 40 epochs of 4 steps, a tenth of the rows being held out
HYPERPARAMETERS = {"n_epochs": 40, "batch_size": 8}
LONGEST_DELAY_SECONDS = 0.1  # behind the step that a kill waits for, so that it falls anywhere within one
WEIGHTS = {"lora": "adapter_model.safetensors", "qlora": "adapter_model.safetensors", "full": "model.safetensors"}


@dataclass(frozen=True)
class Outcome:
    """What a job leaves behind."""

    weights: bytes
    metrics: bytes
    events: Sequence[str] = field(compare=False)
    steps: Sequence[int] = field(compare=False)


def start(service: Service, method: str) -> str:
    """A job of 160 steps."""
    return service.create_job(chat_rows(), hyperparameters=HYPERPARAMETERS, adapter={"method": method}).id


def outcome(service: Service, job_id: str, method: str) -> Outcome:
    """Wait for the job to succeed and download what it made."""
    service.wait(job_id, "succeeded")
    archive = "model.zip" if method == "full" else "adapter.zip"
    with service.http as http:

        def download(name: str) -> bytes:
            path = f"/fine_tuning/jobs/{job_id}/artifacts/{name}"
            return http.get(path, follow_redirects=True).raise_for_status().content

        with zipfile.ZipFile(io.BytesIO(download(archive))) as files:
            weights = files.read(WEIGHTS[method])
        metrics = download("metrics.csv")
    events = list(service.client.fine_tuning.jobs.list_events(job_id, limit=100))
    events.reverse()
    steps = [event.data["step"] for event in events if _is_step(event.data)]
    return Outcome(weights, metrics, [event.message for event in events], steps)


def strike_at_random(service: Service, job_id: str, kills: int, chance: random.Random) -> list[str]:
    """Kill the trainer or its worker `kills` times while the job runs; says what was killed."""
    struck = []
    for number in range(1, kills + 1):
        target = chance.choice(["trainer", "trainer", "worker"])
        delay = chance.random() * LONGEST_DELAY_SECONDS
        wait_for_step(service, job_id, number * STEPS // (kills + 1))
        wait_for(lambda: trainers(service) or None, what="a trainer", context=service.logs)
        signal.sigtimedwait([], delay)  # the random part of the kill's moment
        if target == "trainer":
            for trainer in trainers(service):
                os.kill(trainer.pid, signal.SIGKILL)
        else:
            service.stop("worker", signal.SIGKILL)
            service.start_worker()
        struck.append(target)
    return struck


def trainers(service: Service) -> list[psutil.Process]:
    """The worker's training children: forked by its fork server, each the leader of a process group of its own."""
    found = []
    for child in psutil.Process(service.processes["worker"].pid).children(recursive=True):
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            is_forked = "multiprocessing.forkserver" in " ".join(child.cmdline())
            if is_forked and os.getpgid(child.pid) == child.pid:
                found.append(child)
    return found


def wait_for_step(service: Service, job_id: str, step: int) -> None:
    """Until the job has reported the step; fails the test where it ends before."""

    def reached() -> bool:
        with service.http as http:
            job = http.get(f"/fine_tuning/jobs/{job_id}").json()
        assert job["status"] in ("queued", "running"), f"{job['status']}: {job['error']}"
        return int(job["step"]) >= step

    wait_for(reached, what=f"step {step}", context=service.logs)


def _is_step(data: Any) -> bool:
    return bool(data) and data.get("train_loss") is not None and data.get("valid_loss") is None
