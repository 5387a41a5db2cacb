"""The device of a worker, on machines that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nvml import build_nvml

ROOT = Path(__file__).parents[3]
FIND = """
import json, sys
from worker.machine import find_device
try:
    device = find_device(sys.argv[1])
    print(json.dumps([device.address, device.uuid]))
except SystemExit as error:
    print(json.dumps([str(error)]))
"""
LISTED = """
import json
from cli.training_workers import training_devices
print(json.dumps(training_devices()))
"""
AGAIN = """
import json, os, sys
from planner.devices import read_devices
from worker.machine import device_again
os.environ["CUDA_VISIBLE_DEVICES"] = ""
(card,) = read_devices()
from dataclasses import replace
gone = device_again(replace(card, kind="cuda", uuid="GPU-9"))
print(json.dumps([gone.problem, gone.total_bytes == card.total_bytes]))
"""


def read(folder: Path, script: str, *arguments: str, **stub: int) -> list[object]:
    """What a process prints that finds this NVML library."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **build_nvml(folder, **stub)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[object] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return found


@pytest.mark.parametrize(
    ("name", "address"),
    [("cuda:1", "cuda:1"), ("cuda:0:2", "cuda:0:2"), ("MIG-01111111-2222-3333-4444-666666666660", "cuda:0:0")],
)
def test_a_device_is_found_by_its_address_or_its_uuid(tmp_path: Path, name: str, address: str) -> None:
    assert read(tmp_path, FIND, name, MIG=0)[0] == address


def test_a_sick_device_is_refused_with_its_reason(tmp_path: Path) -> None:
    (said,) = read(tmp_path, FIND, "cuda:0", LOST=0)
    assert said == ("Nothing can be trained on NVIDIA A100-SXM4-80GB (cuda:0): the driver says: GPU is lost.")


def test_what_there_is_is_said_where_a_device_is_not(tmp_path: Path) -> None:
    (said,) = read(tmp_path, FIND, "cuda:7")
    assert "cuda:0 (NVIDIA A100-SXM4-80GB), cuda:1 (NVIDIA A100-SXM4-80GB)" in str(said)


def test_a_device_that_is_no_longer_listed_is_sick(tmp_path: Path) -> None:
    problem, is_same_size = read(tmp_path, AGAIN)
    assert "no longer lists it" in str(problem)
    assert is_same_size


def test_workers_are_started_for_the_sound_devices_alone(tmp_path: Path) -> None:
    assert read(tmp_path, LISTED, LOST=0) == ["cuda:1"]
    assert read(tmp_path, LISTED, MIG=1) == ["cuda:0", "cuda:1:0", "cuda:1:2"]
