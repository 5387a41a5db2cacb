"""What the fork server imports leaves it fit to fork."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.setup import Method
from tests.nvml import build_nvml
from tests.unit.training.runs import request_for, setup_for

ROOT = Path(__file__).resolve().parents[3]
PROBE = """
import json, os, signal, sys
import worker.training.preload
import numpy, torch
child = os.fork()
if child == 0:  # a pool of threads that was started before the fork would never answer here
    signal.alarm(60)
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512) + torch.randn(512, 512).exp()
    numpy.ones((512, 512)) @ numpy.ones((512, 512))
    os._exit(0)
print(json.dumps({
    "forked": os.waitpid(child, 0)[1],
    "cuda": torch.cuda.is_initialized(),
    "secrets": [line for line in open("/proc/self/environ").read().split("\\0") if "hidden" in line],
    "modules": [name for name in ("bitsandbytes", "peft", "transformers.models.llama.modeling_llama",
        "transformers.generation.utils", "worker.training.child") if name not in sys.modules],
    "needless": [name for name in ("torch._inductor.compile_fx",) if name in sys.modules],
    "compiles": torch.compile(torch.neg, backend="eager")(torch.ones(1)).item(),
}))
"""

# torch as built with CUDA, as far as a CPU build can pretend: every entry point behind which CUDA is initialised notes
# who called it, and fails.
PRETENDED = """
import json, sys, traceback
import torch
calls = []
def initialises(name):
    def call(*_args, **_options):
        calls.append([name, *(f"{at.filename}:{at.lineno}" for at in traceback.extract_stack()[-4:-1])])
        raise RuntimeError(f"{name} initialises CUDA")
    return call
for module, names in {
    torch._C: ("_cuda_getDeviceCount", "_cuda_init", "_cuda_getCurrentRawStream"),
    torch.cuda: ("_lazy_init", "current_device", "get_device_properties", "get_device_name", "is_bf16_supported",
        "mem_get_info", "memory_allocated", "set_device", "synchronize", "current_stream", "get_rng_state"),
    torch.accelerator: ("device_count", "current_device_index"),
}.items():
    for name in names:
        setattr(module, name, initialises(name))
torch._C._has_cuda = True
torch.cuda._is_compiled = lambda: True
torch.version.cuda = "13.0"
"""

IMPORTED = f"""
{PRETENDED}
import worker.training.preload
from bitsandbytes import cextension
print(json.dumps({{"calls": calls, "bitsandbytes": cextension.BNB_BACKEND}}))
"""

ASKED = f"""
{PRETENDED}
from worker.training.unforked_cuda import EarlyCudaError, cuda_untouched
before = torch.cuda.is_available, torch.cuda._lazy_init
with cuda_untouched():
    found = [torch.cuda.is_available(), torch.cuda.device_count()]
    if torch.cuda.is_available():
        found += map(torch.cuda.get_device_capability, (None, 0, torch.cuda.device(0), torch.device("cuda:0")))
    try:
        torch.cuda.init()
    except EarlyCudaError:
        found.append("refused")
undone = before == (torch.cuda.is_available, torch.cuda._lazy_init)
print(json.dumps({{"found": found, "calls": calls, "undone": undone}}))
"""

RUN = """
import os, pickle, sys
import worker.training.preload
with open(sys.argv[1], "rb") as file:
    request = pickle.load(file)
preloaded = set(sys.modules)
worker.training.child.main(request, os.open(os.devnull, os.O_WRONLY))
print(*sorted(set(sys.modules) - preloaded))
"""


def test_preload_can_be_forked_leaves_cuda_alone_knows_no_secret_and_misses_nothing() -> None:
    environment = os.environ | {"TUNEWRIGHT_DATABASE_URL": "hidden", "AWS_SECRET_ACCESS_KEY": "hidden"}
    command = [sys.executable, "-c", PROBE]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert json.loads(finished.stdout) == {
        "forked": 0,
        "cuda": False,
        "secrets": [],
        "modules": [],
        "needless": [],
        "compiles": -1.0,
    }
    assert finished.stderr == ""


def read(script: str, environment: dict[str, str]) -> dict[str, Any]:
    """What a process prints that finds these GPUs."""
    command = [sys.executable, "-c", script]
    environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(done.stdout.strip().rsplit("\n", 1)[-1])
    return found


def test_preload_asks_nothing_of_cuda_that_initialises_it_on_a_mig_slice(tmp_path: Path) -> None:
    environment = build_nvml(tmp_path, MIG=0)
    environment["CUDA_VISIBLE_DEVICES"] = "MIG-01111111-2222-3333-4444-666666666660"
    assert read(IMPORTED, environment) == {"calls": [], "bitsandbytes": "CUDA"}


@pytest.mark.parametrize("visible", ["1", "GPU-01111111-2222-3333-4444-555555555555", "GPU-1", ""])
def test_nvml_answers_while_libraries_are_imported(tmp_path: Path, visible: str) -> None:
    found = read(ASKED, build_nvml(tmp_path) | {"CUDA_VISIBLE_DEVICES": visible})
    there = [True, 1, *4 * [[8, 0]]] if visible else [False, 0]
    assert found == {"found": [*there, "refused"], "calls": [], "undone": True}


def test_a_run_imports_next_to_nothing_more(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    request = tmp_path / "request"
    request.write_bytes(pickle.dumps(request_for(tiny_model, conversations, tmp_path / "run", setup_for(Method.QLORA))))
    command = [sys.executable, "-c", RUN, str(request)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported = finished.stdout.split()
    assert len(imported) < 20, imported  # of thousands; four small ones of PEFT and torch at the time of writing
