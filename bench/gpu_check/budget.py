"""The steps, most telling first, each in a process of its own that is ended when its time is up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu_check.session import Session

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = 3  # exit code
_GRACE_SECONDS = 5  # between the end that a step is told and the one that is forced


@dataclass(frozen=True)
class Step:
    """A function of the check and its time."""

    name: str
    function: str  # "module:function" of this folder
    least_seconds: float  # below which it is not worth beginning; kept free for it by the steps before it
    most_seconds: float


STEPS = (
    Step("environment", "environment:run", 15, 60),
    Step("rates", "rates:run", 10, 50),
    Step("jobs", "jobs:run", 45, 130),
    Step("speed", "speed:run", 60, 180),
    Step("peers", "peers:run", 50, 130),
    Step("memory", "memory:run", 40, 160),
    Step("compiled", "speed:run_compiled", 30, 120),
)


def allotted_seconds(steps: Sequence[Step], number: int, left_seconds: float) -> float | None:
    """Time for one of the steps: what is left without the least of those behind it, the last one all of it. None: it is
    not begun. A step takes its least before those behind it do.
    """
    step, later = steps[number], steps[number + 1 :]
    if left_seconds < step.least_seconds:
        return None
    most = step.most_seconds if later else left_seconds
    return min(most, max(step.least_seconds, left_seconds - sum(other.least_seconds for other in later)))


def run_steps(session: Session, steps: Sequence[Step], budget_seconds: float, visible: str | None) -> str | None:
    """Run the steps one after another on the GPU that CUDA_VISIBLE_DEVICES is to name.

    Returns a sentence where torch cannot use a GPU after all.
    """
    if session.rehearsing:  # a CPU takes its time
        steps = [replace(step, most_seconds=budget_seconds) for step in steps]
    ends_at = time.time() + budget_seconds
    session.out.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps):
        left = ends_at - time.time()
        seconds = allotted_seconds(steps, number, left)
        if seconds is None:
            session.record(step.name, skipped=f"{max(0, left):.0f} s left, {step.least_seconds:.0f} s wanted")
            continue
        started = time.monotonic()
        code = _run(session, step, seconds, visible)
        taken = round(time.monotonic() - started, 1)
        if code == NO_GPU:
            return str(session.read()[-1]["error"])
        session.record(step.name, **_ending(session, code), seconds=taken)
    return None


def _ending(session: Session, code: int) -> dict[str, object]:
    """What is to be said of a step that ended so."""
    if code == 0:
        return {"exit_code": 0}
    if code == -signal.SIGKILL:
        return {"skipped": "its time was up: what it was at is lost"}
    said = session.log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    return {"exit_code": code, "error": f"exit code {code}, all of it in log.txt: {said}"[:1000]}


def _run(session: Session, step: Step, seconds: float, visible: str | None) -> int:
    """One step in a process group of its own, killed when its time is up. Returns its exit code."""
    ends_at = time.time() + seconds - _GRACE_SECONDS
    command = [sys.executable, "-m", "bench.gpu_check.step", step.name, step.function]
    command += ["--out", str(session.out.resolve()), "--ends-at", str(ends_at)]
    command += ["--rehearse"] if session.rehearsing else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # as the worker: to ask for a GPU is not to initialise CUDA
    with session.log.open("ab") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, start_new_session=True)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            _end_group(child.pid)
            child.wait()


def _end_group(process_id: int) -> None:
    """End a step with whatever it started."""
    with suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)
