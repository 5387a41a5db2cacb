"""Reading devices through the real pynvml, against an NVML library compiled here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from planner import devices
from planner.devices import read_cpu, read_devices

STUB = r"""
#include <stdio.h>
#include <string.h>
typedef int nvmlReturn_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
static char cards[2] = {0, 1};
nvmlReturn_t nvmlInitWithFlags(unsigned int flags) { return INIT; }
nvmlReturn_t nvmlInit_v2(void) { return INIT; }
nvmlReturn_t nvmlShutdown(void) { return 0; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { *count = COUNT; return 0; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **h) { *h = &cards[i]; return i < 2 ? 0 : 2; }
nvmlReturn_t nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
  m->total = 85899345920ULL; m->free = 80000000000ULL + *(char *)h; m->used = m->total - m->free; return MEMORY; }
nvmlReturn_t nvmlDeviceGetName(void *h, char *s, unsigned int n) { strncpy(s, "NVIDIA A100-SXM4-80GB", n); return 0; }
nvmlReturn_t nvmlDeviceGetUUID(void *h, char *s, unsigned int n) { snprintf(s, n, "GPU-%d", *(char *)h); return 0; }
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 8; *b = 0; return 0; }
typedef struct { unsigned pid; unsigned long long held; unsigned gpu, compute; } process_t;
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, void **h) {
  *h = &cards[1]; return strcmp(uuid, "GPU-1") ? 6 : 0; }
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, process_t *p) {
  if (*count < 2) { *count = 2; return 7; }
  *count = 2; p[0].pid = 11; p[0].held = 1111; p[1].pid = 22; p[1].held = 2222; return 0; }
const char *nvmlErrorString(nvmlReturn_t r) { return r == 15 ? "GPU is lost" : "Unknown Error"; }
"""
READ = """
import json
from dataclasses import asdict
from planner.devices import read_devices
from planner.errors import DriverError
try:
    print(json.dumps([asdict(device) for device in read_devices()]))
except DriverError as error:
    print(json.dumps({"error": str(error)}))
"""
READ_PROCESSES = """
import json
from planner.devices import process_bytes
print(json.dumps([process_bytes("GPU-1", 22), process_bytes("GPU-1", 33), process_bytes("GPU-9", 22)]))
"""
ROOT = Path(__file__).parents[3]


def read_with_stub(folder, *, init=0, memory=0, count=2, script=READ):
    """What a process that finds this NVML library reads."""
    (folder / "nvml.c").write_text(STUB)
    options = [f"-DINIT={init}", f"-DMEMORY={memory}", f"-DCOUNT={count}"]
    library = str(folder / "libnvidia-ml.so.1")
    subprocess.run(["gcc", "-shared", "-fPIC", *options, "-o", library, str(folder / "nvml.c")], check=True)
    return read_in_process({"LD_LIBRARY_PATH": str(folder)}, script)


def read_in_process(environment, script=READ):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_gpu_is_read_with_its_free_memory(tmp_path):
    first, second = read_with_stub(tmp_path)
    assert first == {
        "index": 0,
        "kind": "cuda",
        "name": "NVIDIA A100-SXM4-80GB",
        "uuid": "GPU-0",
        "total_bytes": 85899345920,
        "free_bytes": 80000000000,
        "compute_capability": [8, 0],
        "device_class": "nvidia-a100-80gb",
        "cores": None,
    }
    assert (second["index"], second["uuid"], second["free_bytes"]) == (1, "GPU-1", 80000000001)


def test_the_memory_of_one_process_is_read_where_the_driver_tells_it(tmp_path):
    assert read_with_stub(tmp_path, script=READ_PROCESSES) == [2222, None, None]
    assert read_in_process({"LD_LIBRARY_PATH": str(tmp_path / "nowhere")}, READ_PROCESSES) == [None, None, None]


def test_a_driver_without_gpus_leaves_the_cpu(tmp_path):
    (only,) = read_with_stub(tmp_path, count=0)
    assert only["kind"] == "cpu"


def test_a_driver_that_is_not_loaded_leaves_the_cpu(tmp_path):
    (only,) = read_with_stub(tmp_path, init=9)
    assert only["kind"] == "cpu"


def test_a_driver_that_fails_to_start_is_reported(tmp_path):
    assert "does not start" in read_with_stub(tmp_path, init=999)["error"]


def test_a_gpu_that_is_lost_is_reported(tmp_path):
    assert "GPU is lost" in read_with_stub(tmp_path, memory=15)["error"]


def test_no_driver_library_leaves_the_cpu_with_its_memory_and_cores(tmp_path):
    (only,) = read_in_process({"LD_LIBRARY_PATH": str(tmp_path)})
    assert (only["kind"], only["device_class"], only["compute_capability"]) == ("cpu", "cpu", None)
    assert only["cores"] == len(os.sched_getaffinity(0))
    assert 0 < only["free_bytes"] <= only["total_bytes"] <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "used", "total"), [("4294967296", "1073741824", 4 << 30), ("max", "5", None)])
def test_a_control_groups_limit_is_respected(tmp_path, monkeypatch, limit, used, total):
    for name, text in (("_CGROUP_V2_LIMIT", limit), ("_CGROUP_V2_USE", used)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(devices, name, tmp_path / name)
    cpu = read_cpu()
    assert cpu.total_bytes == (total or psutil.virtual_memory().total)
    if total:
        assert cpu.free_bytes <= 3 << 30


def test_this_machine_has_a_device():
    assert read_devices()
