"""A fork server that is of no use ends its worker, which takes no job until it is warm."""

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
    from worker import trainer, training_worker

    trainer.PRELOAD = "preloaded"
    reader, writer = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(writer, b"terminated"))
    worker = training_worker.TrainingWorker(None, [Device(0, "cpu", "CPU", "cpu", 1, 1, None, "cpu")])
    trainer.start_fork_server()
    worker.start()
    said = os.read(reader, 100).decode()
    print(json.dumps({"said": said, "warm": worker._warm.is_set(), "beats": worker._heartbeat.is_alive()}))
"""
# What is asked of torch, without the seconds that its import takes.
CUDA_INITIALISED = """
import sys, types
sys.modules["worker.training.unforked_cuda"] = types.SimpleNamespace(can_use_cuda=lambda: False)
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
    (tmp_path / "preloaded.py").write_text(preloaded)
    (tmp_path / "worker_here.py").write_text(WARMED_UP)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, str(tmp_path / "worker_here.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    output = done.stdout.strip().rsplit("\n", 1)
    assert json.loads(output[-1]) == {"said": "terminated", "warm": False, "beats": False}
    assert "fork_server_unfit" in done.stdout
    assert said in done.stdout
    if preloaded != CUDA_INITIALISED:
        assert preloaded in done.stderr, "its traceback"
