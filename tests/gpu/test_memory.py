"""Real training steps on a GPU against the plan. Skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from planner.devices import read_devices

ROOT = Path(__file__).parents[2]
HAS_GPU = any(device.kind == "cuda" for device in read_devices())
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="there is no CUDA device on this machine")]


@pytest.mark.timeout(1800)
def test_measured_steps_stay_within_their_plans(tmp_path: Path) -> None:
    result = tmp_path / "runs.json"
    command = [sys.executable, "bench/gpu_memory.py", "--grid", "small", "--json", str(result)]
    subprocess.run(command, cwd=ROOT, check=True)
    runs = json.loads(result.read_text())["runs"]
    assert len(runs) >= 12
    for run in runs:
        measured = run["measured"]
        assert run["predicted_bytes"] == pytest.approx(measured["peak_allocated_bytes"], rel=0.05), run
        assert measured["device_bytes"] <= run["device_bytes"] + run["bound_bytes"], run
