"""Reading devices through the real pynvml, against an NVML library compiled here."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from planner import devices
from planner.devices import parse_gpu, read_cpu, read_devices
from planner.nvml import Gpu
from planner.policy.candidates import hourly_rate
from planner.precision import dtype_on, trains_on
from planner.setup import Method
from planner.throughput import device_rates
from tests.nvml import build_nvml

CARDS = [f"GPU-{number}1111111-2222-3333-4444-555555555555" for number in range(2)]
SLICES = [f"MIG-01111111-2222-3333-4444-66666666666{number}" for number in (0, 2)]
READ = """
import json
from dataclasses import asdict
from planner.devices import read_all_devices, read_devices
from planner.errors import DriverError
try:
    sick = [[device.address, device.problem] for device in read_all_devices() if device.problem]
    print(json.dumps([[{"address": device.address, **asdict(device)} for device in read_devices()], sick]))
except DriverError as error:
    print(json.dumps({"error": str(error)}))
"""
READ_USAGE = """
import json
from planner.nvml import usage
names = ("GPU-11111111-2222-3333-4444-555555555555", "GPU-9")
print(json.dumps([found and [found.used_bytes, found.processes] for found in map(usage, names)]))
"""
READ_PROCESSES = """
import json
from planner.devices import process_bytes
uuid = "GPU-11111111-2222-3333-4444-555555555555"
print(json.dumps([process_bytes(uuid, 22), process_bytes(uuid, 33), process_bytes("GPU-9", 22)]))
"""
READ_NOTE = """
import json
from planner.devices import order_note
print(json.dumps(order_note()))
"""
ROOT = Path(__file__).parents[3]


def read_with_stub(folder, visible=None, script=READ, **stub):
    """What a process that finds this NVML library reads; of devices, the sound and the sick."""
    environment = build_nvml(folder, **stub)
    return read_in_process(environment | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}), script)


def read_in_process(environment, script=READ):
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_every_gpu_is_read_with_its_free_memory(tmp_path):
    (first, second), sick = read_with_stub(tmp_path)
    assert first == {
        "address": "cuda:0",
        "index": 0,
        "kind": "cuda",
        "name": "NVIDIA A100-SXM4-80GB",
        "uuid": CARDS[0],
        "total_bytes": 85899345920,
        "free_bytes": 80000000000,
        "compute_capability": [8, 0],
        "device_class": "nvidia-a100-80gb",
        "cores": None,
        "multiplies_bfloat16": True,
        "has_liger": find_spec("liger_kernel") is not None and find_spec("triton") is not None,
        "slice": None,
        "card_class": None,
        "card_share": 1.0,
        "problem": None,
    }
    assert (second["index"], second["uuid"], second["free_bytes"]) == (1, CARDS[1], 80000000001)
    assert sick == []


def test_slices_are_devices_of_their_own_and_their_card_is_none(tmp_path):
    (small, large, whole), _ = read_with_stub(tmp_path, MIG=0)
    assert [small["address"], large["address"], whole["address"]] == ["cuda:0:0", "cuda:0:2", "cuda:1"]
    assert [small["uuid"], large["uuid"]] == SLICES
    assert (small["total_bytes"], small["free_bytes"], large["total_bytes"]) == (10 << 30, 9000000000, 40 << 30)
    assert small["name"] == "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
    assert small["device_class"] == "nvidia-a100-80gb-mig-1g-10gb"
    assert (large["card_class"], large["card_share"]) == ("nvidia-a100-80gb", pytest.approx(3 / 7))
    assert (whole["device_class"], whole["card_class"]) == ("nvidia-a100-80gb", None)


def test_a_card_with_mig_and_no_slice_says_so(tmp_path):
    (whole,), sick = read_with_stub(tmp_path, MIG=1, SLICES=0)
    assert whole["uuid"] == CARDS[0]
    assert [address for address, _ in sick] == ["cuda:1"]
    assert "MIG is on and there is no slice" in sick[0][1]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("1", [CARDS[1]]),
        ("1,0", [CARDS[1], CARDS[0]]),
        ("GPU-1", [CARDS[1]]),
        ("GPU-", ["cpu"]),  # ambiguous
        (f"{CARDS[1]},{CARDS[0]}", [CARDS[1], CARDS[0]]),
        ("1,7,0", [CARDS[1]]),  # CUDA stops at the first that names nothing
        ("1,GPU-1", ["cpu"]),  # and sees none where one is named twice
        ("-1", ["cpu"]),
        ("", ["cpu"]),
        ("NoDevFiles", ["cpu"]),
    ],
)
def test_only_visible_gpus_are_listed_in_their_order(tmp_path, visible, found):
    devices, _ = read_with_stub(tmp_path, visible)
    assert [device["uuid"] for device in devices] == found
    assert [device["index"] for device in devices] == list(range(len(found)))


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (SLICES[1], [SLICES[1]]),
        (f"MIG-01111111-2222-3333-4444-666666666662,{CARDS[1]}", [SLICES[1], CARDS[1]]),
        ("MIG-", ["cpu"]),
        ("0", SLICES),
        ("GPU-0", SLICES),
        (f"1,{SLICES[0]}", [CARDS[1], SLICES[0]]),
    ],
)
def test_slices_are_visible_by_their_names_and_by_their_cards(tmp_path, visible, found):
    devices, _ = read_with_stub(tmp_path, visible, MIG=0)
    assert [device["uuid"] for device in devices] == found


def test_a_sick_gpu_does_not_hide_the_others(tmp_path):
    (sound,), sick = read_with_stub(tmp_path, LOST=0)
    assert (sound["uuid"], sound["address"]) == (CARDS[1], "cuda:1")
    assert sick == [["cuda:0", "the driver says: GPU is lost"]]


@pytest.mark.parametrize(("mode", "word"), [(2, "Prohibited"), (3, "Exclusive_Process")])
def test_a_compute_mode_that_leaves_no_room_for_the_proof_is_named(tmp_path, mode, word):
    said = read_with_stub(tmp_path, MODE=mode, COUNT=1)["error"]
    assert word in said
    assert "nvidia-smi -i 0 -c DEFAULT" in said


def test_what_a_gpu_has_in_use_is_read_where_the_driver_tells_it(tmp_path):
    used = 85899345920 - 80000000001
    assert read_with_stub(tmp_path, script=READ_USAGE) == [[used, {"11": 1111, "22": 2222}], None]
    assert read_with_stub(tmp_path, script=READ_USAGE, PROCESSES=0) == [[used, {}], None]
    assert read_in_process({"LD_LIBRARY_PATH": str(tmp_path / "nowhere")}, READ_USAGE) == [None, None]


def test_the_memory_of_one_process_is_read_where_the_driver_tells_it(tmp_path):
    assert read_with_stub(tmp_path, script=READ_PROCESSES) == [2222, None, None]
    assert read_in_process({"LD_LIBRARY_PATH": str(tmp_path / "nowhere")}, READ_PROCESSES) == [None, None, None]


def test_an_index_that_cuda_would_count_otherwise_is_spoken_of(tmp_path):
    assert "PCI_BUS_ID" in read_with_stub(tmp_path, "1", READ_NOTE, MIXED=1)
    assert read_with_stub(tmp_path, CARDS[1], READ_NOTE, MIXED=1) is None
    assert read_with_stub(tmp_path, "1", READ_NOTE) is None


def test_a_driver_without_gpus_leaves_the_cpu(tmp_path):
    (only,), _ = read_with_stub(tmp_path, COUNT=0)
    assert only["kind"] == "cpu"


def test_a_driver_that_is_not_loaded_leaves_the_cpu(tmp_path):
    (only,), _ = read_with_stub(tmp_path, INIT=9)
    assert only["kind"] == "cpu"


def test_a_driver_that_fails_to_start_is_reported(tmp_path):
    assert "does not start" in read_with_stub(tmp_path, INIT=999)["error"]


def test_where_no_gpu_is_sound_each_says_why(tmp_path):
    said = read_with_stub(tmp_path, MEMORY=15)["error"]
    assert said.count("GPU is lost") == 2


def test_no_driver_library_leaves_the_cpu_with_its_memory_and_cores(tmp_path):
    (only,), _ = read_in_process({"LD_LIBRARY_PATH": str(tmp_path)})
    assert (only["kind"], only["device_class"], only["compute_capability"]) == ("cpu", "cpu", None)
    assert only["cores"] == len(os.sched_getaffinity(0))
    assert 0 < only["free_bytes"] <= only["total_bytes"] <= psutil.virtual_memory().total


def test_a_slice_costs_and_computes_its_share_of_its_card(tmp_path):
    card = parse_gpu("A100-80GB")
    small = replace(
        card, device_class=f"{card.device_class}-mig-1g-10gb", card_class=card.device_class, card_share=1 / 7
    )
    prices = {card.device_class: 7000, "default": 700}
    assert hourly_rate(prices, small) == 1000
    assert hourly_rate({"default": 700}, small) == 100
    assert hourly_rate({**prices, small.device_class: 1500}, small) == 1500
    assert device_rates(small).flops == pytest.approx(device_rates(card).flops / 7)


@pytest.mark.parametrize(("limit", "used", "total"), [("4294967296", "1073741824", 4 << 30), ("max", "5", None)])
def test_a_control_groups_limit_is_respected(tmp_path, monkeypatch, limit, used, total):
    for name, text in (("_CGROUP_V2_LIMIT", limit), ("_CGROUP_V2_USE", used)):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(devices, name, tmp_path / name)
    cpu = read_cpu()
    assert cpu.total_bytes == (total or psutil.virtual_memory().total)
    if total:
        assert cpu.free_bytes <= 3 << 30


@pytest.mark.parametrize(
    ("information", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512dq avx512bw avx512vl\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 fma\n", False),
        ("processor : 0\nFeatures\t: fp asimd i8mm bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_a_cpu_without_kernels_for_bfloat16_computes_in_float32(tmp_path, monkeypatch, information, expected):
    (tmp_path / "cpuinfo").write_text(information)
    monkeypatch.setattr(devices, "_CPU_INFORMATION", tmp_path / "cpuinfo")
    cpu = read_cpu()
    assert cpu.multiplies_bfloat16 is expected
    assert dtype_on(cpu) == ("bfloat16" if expected else "float32")
    assert trains_on(cpu, Method.FULL)
    fast = device_rates(replace(cpu, multiplies_bfloat16=True)).flops
    assert (device_rates(cpu).flops == fast) is expected


def test_it_is_asked_as_torch_asks():
    torch = pytest.importorskip("torch")
    assert read_cpu().multiplies_bfloat16 == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_this_machine_has_a_device():
    assert read_devices()


def test_a_card_that_torch_has_no_kernels_for_is_found_with_its_reason():
    old = Gpu(0, "Tesla V100-SXM2-16GB", "GPU-0", 16 << 30, 16 << 30, compute_capability=(7, 0))
    said = devices._device(0, old).problem
    assert said is not None
    assert "compute capability 7.0" in said
    assert devices._device(0, replace(old, name="Tesla T4", compute_capability=(7, 5))).problem is None
