"""The machine: GPUs through NVML, or the CPU with the memory that this process may use."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from planner.catalogue import GIB, CatalogueGpu, find_gpu, gpus, match_driver_name
from planner.errors import DriverError, InvalidSetupError

_CGROUP_V2_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_V2_USE = Path("/sys/fs/cgroup/memory.current")
_CGROUP_V1_LIMIT = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_V1_USE = Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(gib|gb|g)$", re.IGNORECASE)
_TOO_OLD = re.compile(r"\b(v100s?|titan ?(v|xp?)|p100|p40|p4|gtx ?(9|10)\d\d|m[46]0|k80|k40)\b", re.IGNORECASE)
_UNITS = {"gib": GIB, "g": GIB, "gb": 10**9}


@dataclass(frozen=True)
class Device:
    """One device that can train. `free_bytes` is what was free when it was read."""

    index: int
    kind: str  # "cuda" or "cpu"
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None
    device_class: str  # stable slug for prices and queues, e.g. "nvidia-a100-80gb" or "cpu"
    cores: int | None = None  # of a CPU


def read_devices() -> list[Device]:
    """The GPUs that NVML reports, in its order; without a driver or a GPU, the CPU.

    Raises DriverError where a driver is installed but does not answer.
    """
    return _read_gpus() or [read_cpu()]


def read_cpu() -> Device:
    """The CPU with the memory free to this process: the machine's, or its control group's where that is smaller."""
    import psutil  # noqa: PLC0415 - the planner computes without the machine; only reading it needs the library

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return Device(0, "cpu", f"CPU, {_cores()} cores", "cpu", total, free, None, "cpu", _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_memory() -> tuple[int | None, int]:
    for limit, used in ((_CGROUP_V2_LIMIT, _CGROUP_V2_USE), (_CGROUP_V1_LIMIT, _CGROUP_V1_USE)):
        try:
            text = limit.read_text(encoding="ascii").strip()
            return (None, 0) if text == "max" else (int(text), int(used.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return None, 0


def _read_gpus() -> list[Device]:
    import pynvml  # noqa: PLC0415 - see the import contract: NVML is read here and nowhere else

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise DriverError(f"The NVIDIA driver does not start: {error}. Check `nvidia-smi`.") from error
    try:
        return [_read_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise DriverError(f"The NVIDIA driver stopped answering: {error}. Check `nvidia-smi`.") from error
    finally:
        pynvml.nvmlShutdown()


def process_bytes(uuid: str, process_id: int) -> int | None:
    """Memory that one process holds on the GPU with this uuid; None where NVML does not say (containers, no driver)."""
    import pynvml  # noqa: PLC0415 - see the import contract: NVML is read here and nowhere else

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        held = [p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle) if p.pid == process_id]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    return int(held[0]) if held and held[0] is not None else None


def _read_gpu(nvml, index: int) -> Device:  # type: ignore[no-untyped-def]  # the module, imported by the caller
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(nvml.nvmlDeviceGetName(handle))
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Device(
        index=index,
        kind="cuda",
        name=name,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        compute_capability=(int(major), int(minor)),
        device_class=_device_class(name, int(memory.total)),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _device_class(name: str, total_bytes: int) -> str:
    """The catalogue's slug of the card with this driver name and size, else one made of both."""
    gpu = match_driver_name(name, total_bytes)
    if gpu is not None:
        return f"nvidia-{gpu.id}"
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").removeprefix("nvidia-")
    return f"nvidia-{words}-{round(total_bytes / GIB)}gb"


def parse_gpu(text: str) -> Device:
    """A hypothetical, empty GPU: a size ("24GiB", "80GB") or a name of the catalogue ("A100-80GB").

    Raises InvalidSetupError for anything else.
    """
    size = _SIZE.match(text.strip())
    if size:
        total = int(float(size[1]) * _UNITS[size[2].lower()])
        return Device(0, "cuda", f"a GPU with {text.strip()}", f"hypothetical-{text}", total, total, (8, 0), "default")
    if text.strip().lower() == "cpu":
        return read_cpu()
    gpu = find_gpu(text)
    if gpu is None and _TOO_OLD.search(text):
        raise InvalidSetupError(
            f"{text} has a compute capability below 7.5, for which PyTorch has no kernels. The oldest GPUs that can "
            "train are the T4 and the RTX 20 series."
        )
    if gpu is None:
        raise InvalidSetupError(
            f"{text!r} is neither a size such as 24GiB nor a known GPU. Known: {', '.join(g.id for g in gpus())}."
        )
    return device_of(gpu)


def device_of(gpu: CatalogueGpu) -> Device:
    """An empty device of this kind."""
    return Device(
        0, "cuda", gpu.title, f"hypothetical-{gpu.id}", gpu.total_bytes, gpu.total_bytes,
        gpu.compute_capability, f"nvidia-{gpu.id}",
    )  # fmt: skip
