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


@pytest.mark.timeout(600)
def test_measured_steps_stay_within_their_plans(tmp_path: Path) -> None:
    command = [sys.executable, "bench/gpu.py", "--only", "memory", "--budget", "300", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((tmp_path / "report.json").read_text())["results"]
    assert [row for row in results if "error" in row] == []
    measured = [row for row in results if "measured_bytes" in row]
    assert len(measured) >= 4
    for run in measured:
        assert run["predicted_bytes"] == pytest.approx(run["measured_bytes"], rel=0.05), run
        assert run.get("held_bytes", 0) <= run["device_bytes"] + run["bound_bytes"], run
