"""What the machine is, what the planner reads of it, and what CUDA takes beside tensors."""

import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.gpu_check.session import Session
from planner.devices import read_devices
from planner.memory.estimate import library_workspaces, overheads
from planner.setup import Method, TrainingSetup
from worker.training.memory import MemoryWatch

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "liger-kernel", "unsloth", "flash-attn",
    "triton", "tokenizers", "nvidia-ml-py", "numpy",
)  # fmt: skip
_SMI = "name,memory.total,memory.used,driver_version,compute_mode,mig.mode.current,power.limit,clocks.max.sm"
MIB = 1 << 20
_EDGE = 4096


def run(session: Session) -> None:
    """Read everything, cheapest first."""
    session.record("versions", **versions())
    with session.case("devices, as the planner reads them") as figures:
        figures["devices"] = [asdict(device) for device in read_devices()]
    if session.rehearsing:
        return
    with session.case("context, workspaces, allocator (MiB)") as figures:
        figures |= context_and_workspaces(torch.device(session.device))


def versions() -> dict[str, Any]:
    """Of everything that decides memory or speed; None for what is not installed."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.platform()}
    found["cores"], found["cuda"] = os.cpu_count(), torch.version.cuda
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        found["nvidia-smi"] = done.stdout.strip() or done.stderr.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found["nvidia-smi"] = str(error)
    return found


def context_and_workspaces(device: torch.device) -> dict[str, Any]:
    """What the planner adds to tensors, beside what the driver and the allocator say. The planner's context counts
    torch's kernels too, so it is to be compared with what is held after the first of them ran."""
    watch = MemoryWatch(device, None)  # sets the allocator up as a run does
    torch.empty(1, device=device)
    free, total = torch.cuda.mem_get_info(device)
    planned = read_devices()[0]
    context, _slack = overheads(TrainingSetup(Method.FULL), planned, 0)
    found: dict[str, Any] = {
        "capability": torch.cuda.get_device_capability(device),
        "arch_list": torch.cuda.get_arch_list(),
        "used_of_all": (total - free) // MIB,
        "total": total // MIB,
        "reserved": torch.cuda.memory_reserved() // MIB,
        "planned_context": context // MIB,
        "planned_workspaces": library_workspaces(planned) // MIB,
    }
    weight = torch.randn(_EDGE, _EDGE, device=device, dtype=torch.bfloat16, requires_grad=True)
    before = torch.cuda.memory_allocated()
    (weight @ weight).sum().backward()  # cuBLAS has a handle in this thread and one in autograd's
    weight.grad = None
    found["workspaces"] = (torch.cuda.memory_allocated() - before) // MIB
    bias = torch.randn(_EDGE, device=device, dtype=torch.bfloat16)
    torch.nn.functional.linear(weight.detach(), weight.detach(), bias)  # cuBLASLt's epilogue
    found["workspaces_with_cublaslt"] = (torch.cuda.memory_allocated() - before) // MIB
    said = watch.report("end")
    found["context"] = (said.device_bytes - said.peak_reserved_bytes) // MIB
    return found
