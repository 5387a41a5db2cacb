"""A fork server that is of no use ends its worker, which takes no job until it is warm; one that hangs is replaced."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A worker that is told to warm up as its program does, and what becomes of it.
WARMED_UP = """
import json, os, signal

if __name__ == "__main__":  # what is forked reads this file too
    from planner.devices import Device
    from worker import fork_server, training_worker

    fork_server.PRELOAD = "preloaded"
    reader, writer = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(writer, b"terminated"))
    worker = training_worker.TrainingWorker(None, [Device(0, "cpu", "CPU", "cpu", 1, 1, None, "cpu")])
    fork_server.start_fork_server()
    worker.start()
    said = os.read(reader, 100).decode()
    print(json.dumps({"said": said, "warm": worker._warm.is_set(), "beats": worker._heartbeat.is_alive()}))
"""
# What is asked of torch, without the seconds that its import takes.
CUDA_INITIALISED = """
import sys, types
sys.modules["worker.training.unforked_cuda"] = types.SimpleNamespace(can_use_cuda=lambda: False)
"""
CUDA_UNTOUCHED = CUDA_INITIALISED.replace("False", "True")
# A fork server that is stopped while it has a process, which is killed, and before it is to fork another.
STOPPED = """
import os, signal, time

if __name__ == "__main__":
    from multiprocessing import forkserver
    from worker import fork_server

    fork_server.PRELOAD = "preloaded"
    fork_server.warm_up()
    stopped = forkserver._forkserver._forkserver_pid
    first, second = (fork_server.context.Process(target=time.sleep, args=(seconds,)) for seconds in (600, 0))
    fork_server.start(first, 60)
    os.kill(stopped, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    if {is_asked_for_an_end}:
        fork_server.join(first, 0.5)
    fork_server.start(second, 0.5)
    second.join()
    first.join()
    print(second.exitcode, first.exitcode, forkserver._forkserver._forkserver_pid != stopped)
"""


@pytest.mark.parametrize(
    ("preloaded", "said"),
    [
        ("raise RuntimeError('no such driver')", "The fork server died while it imported"),
        ("import a_library_that_is_not_installed", "The fork server cannot import what training needs"),
        (CUDA_INITIALISED, "The fork server has initialised CUDA"),
    ],
)
def test_a_worker_whose_fork_server_is_unfit_ends_before_it_claims_a_job(
    tmp_path: Path, preloaded: str, said: str
) -> None:
    done = run(tmp_path, WARMED_UP, preloaded)
    output = done.stdout.strip().rsplit("\n", 1)
    assert json.loads(output[-1]) == {"said": "terminated", "warm": False, "beats": False}
    assert "fork_server_unfit" in done.stdout
    assert said in done.stdout
    if preloaded != CUDA_INITIALISED:
        assert preloaded in done.stderr, "its traceback"


@pytest.mark.parametrize("is_asked_for_an_end", [True, False], ids=["at an end", "at a start"])
def test_a_fork_server_that_hangs_is_killed_and_another_forks(tmp_path: Path, is_asked_for_an_end: bool) -> None:
    program = STOPPED.format(is_asked_for_an_end=is_asked_for_an_end)
    done = run(tmp_path, program, CUDA_UNTOUCHED)
    assert done.stdout.splitlines()[-1] == "0 255 True"  # 255: nobody knows how its process ended
    assert done.stdout.count("fork_server_hangs") == 1


def run(directory: Path, program: str, preloaded: str) -> subprocess.CompletedProcess[str]:
    (directory / "preloaded.py").write_text(preloaded)
    (directory / "worker_here.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{directory}"}
    command = [sys.executable, str(directory / "worker_here.py")]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
