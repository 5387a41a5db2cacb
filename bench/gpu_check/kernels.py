"""Where the time of a step goes: its kernels by kind, and the longest of them, in kernels.txt."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.gpu_check.session import Session

_KINDS = {
    "attention": ("flash", "fmha", "cudnn_generated", "sdpa"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk"),
    "4-bit": ("dequant", "quantize"),
    "optimizer": ("adam", "multi_tensor"),
    "copies and casts": ("copy", "memcpy", "memset", "cat"),
    "reductions": ("reduce", "softmax"),
    "triton": ("triton", "liger", "rms_norm", "swiglu"),
    "index": ("index", "gather", "scatter"),
}
_SHOWN = 30  # kernels of a step


def write_kernels(session: Session, title: str, work: Callable[[], object]) -> dict[str, Any]:
    """Profile `work`, append its kernels to kernels.txt and return milliseconds by kind."""
    activities = [ProfilerActivity.CPU] if session.rehearsing else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        if not session.rehearsing:
            torch.cuda.synchronize()
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and event.name:
            kernels[event.name].append(event.time_range.elapsed_us() / 1000)
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, times in kernels.items():
        kinds[kind_of(name)] += times
    with (session.out / "kernels.txt").open("a", encoding="utf-8") as file:
        file.write(f"\n===== {title}\n{_table(kinds)}\n{_table(kernels)}")
        file.write(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15) + "\n")
    return {
        "kernel_launches": sum(map(len, kernels.values())),
        "kernel_ms": {kind: round(sum(times), 1) for kind, times in _longest_first(kinds)},
    }


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    low = kernel.lower()
    return next((kind for kind, words in _KINDS.items() if any(word in low for word in words)), "elementwise")


def _longest_first(times: dict[str, list[float]]) -> list[tuple[str, list[float]]]:
    return sorted(times.items(), key=lambda item: -sum(item[1]))


def _table(times: dict[str, list[float]]) -> str:
    rows = _longest_first(times)[:_SHOWN]
    return "".join(f"{sum(each):10.2f} ms {len(each):6}x  {name[:150]}\n" for name, each in rows)
