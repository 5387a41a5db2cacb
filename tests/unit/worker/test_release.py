"""Whether what a training child held is free again."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from planner.devices import Device
from planner.errors import DriverError
from worker import release
from worker.release import members, wait_until_released

GIB = 1024**3
CPU = Device(0, "cpu", "Test CPU", "cpu", 16 * GIB, 12 * GIB, None, "cpu")
GPU = Device(0, "cuda", "Test GPU", "GPU-1", 48 * GIB, 40 * GIB, (8, 0), "nvidia-test")
NO_GROUP = 2**22 + 1  # above Linux's largest process id

# Leads a group, starts another process in it, says so, and ends as soon as its input does; the other lives on.
LEADER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def leader():
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout.readline() == b"up\n"
    with process:
        yield process
        for left in members(process.pid):
            os.kill(left, signal.SIGKILL)


def test_a_group_lives_as_long_as_any_of_its_processes(leader: subprocess.Popen[bytes]) -> None:
    assert len(list(members(leader.pid))) == 2
    leader.stdin.close()
    leader.wait()
    (left,) = members(leader.pid)
    with capture_logs() as logs:
        assert not wait_until_released(CPU, leader.pid, seconds=0.1)
    assert [(entry["event"], entry["processes"]) for entry in logs] == [("device_not_released", [left])]
    os.kill(left, signal.SIGKILL)
    assert wait_until_released(CPU, leader.pid, seconds=60)


def test_a_gpu_is_waited_for_until_its_memory_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10 * GIB, DriverError("reset"), 30 * GIB, 40 * GIB - release.SLACK_BYTES])

    def read_all_devices() -> list[Device]:
        said = next(free)
        if isinstance(said, DriverError):
            raise said
        return [replace(GPU, index=1, uuid="GPU-0"), replace(GPU, free_bytes=said)]

    monkeypatch.setattr(release, "read_all_devices", read_all_devices)
    assert wait_until_released(GPU, NO_GROUP, seconds=60)
    assert next(free, None) is None


def test_memory_that_stays_taken_is_logged_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "read_all_devices", lambda: [replace(GPU, free_bytes=15 * GIB)])
    with capture_logs() as logs:
        assert not wait_until_released(GPU, NO_GROUP, seconds=0.05)
    assert [(entry["device"], entry["missing_bytes"]) for entry in logs] == [("Test GPU", 25 * GIB)]


@pytest.mark.parametrize("listed", [[], [replace(GPU, free_bytes=0, problem="it has fallen off the bus")]])
def test_a_lost_card_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, listed: list[Device]) -> None:
    looks = iter([listed])  # a second look would find nothing to read
    monkeypatch.setattr(release, "read_all_devices", lambda: [replace(GPU, uuid="GPU-0"), *next(looks)])
    with capture_logs() as logs:
        assert wait_until_released(GPU, NO_GROUP, seconds=60)
    assert [(entry["event"], entry["device"]) for entry in logs] == [("device_lost", "Test GPU")]
