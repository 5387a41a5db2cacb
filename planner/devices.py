"""The machine: the visible GPUs, or the CPU with the memory that this process may use."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from planner.catalogue import GIB, CatalogueGpu, find_gpu, gpus, match_driver_name
from planner.errors import DriverError, InvalidSetupError
from planner.nvml import Gpu, choose_visible, read_gpus, usage

_CGROUP_V2_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_V2_USE = Path("/sys/fs/cgroup/memory.current")
_CGROUP_V1_LIMIT = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CGROUP_V1_USE = Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")
_CPU_INFORMATION = Path("/proc/cpuinfo")
# With one of these oneDNN has kernels for bfloat16 (mkldnn_bf16_device_check of torch); without, torch's own loops are
# up to 30 times slower than float32.
_BFLOAT16 = {"avx512bw", "avx_ne_convert", "amx_bf16", "bf16"}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(gib|gb|g)$", re.IGNORECASE)
OLDEST_CAPABILITY = (7, 5)  # below, torch's CUDA 13 wheels have no kernels
_TOO_OLD = re.compile(r"\b(v100s?|titan ?(v|xp?)|p100|p40|p4|gtx ?(9|10)\d\d|m[46]0|k80|k40)\b", re.IGNORECASE)
_UNITS = {"gib": GIB, "g": GIB, "gb": 10**9}


@dataclass(frozen=True)
class Device:
    """One device that can train: a CPU, a whole GPU or a MIG slice. `free_bytes` is what was free when it was read."""

    index: int  # among the visible devices, as CUDA counts them
    kind: str  # "cuda" or "cpu"
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None
    device_class: str  # stable slug for prices and queues, e.g. "nvidia-a100-80gb" or "cpu"
    cores: int | None = None  # of a CPU
    multiplies_bfloat16: bool = True  # of a CPU: it has kernels for that, no slower than those for float32
    has_liger: bool = False  # of a GPU: Liger's kernels are installed where its jobs run

    # Of a MIG slice: its place on its card, the card's own device class, and the share of its compute.
    slice: int | None = None
    card_class: str | None = None
    card_share: float = 1.0

    problem: str | None = None  # why nothing can be trained on it, where it is sick

    @property
    def address(self) -> str:
        """How it is named to a worker: "cpu", "cuda:1", or "cuda:1:0" for a card's first slice."""
        if self.kind == "cpu":
            return self.kind
        return f"{self.kind}:{self.index}" + (f":{self.slice}" if self.slice is not None else "")


def read_devices() -> list[Device]:
    """The devices that can train: the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order, or without one the CPU.

    Raises DriverError where a driver is installed but does not answer, or where no visible GPU is sound.
    """
    found = read_all_devices()
    sound = [device for device in found if device.problem is None]
    if not sound:
        raise DriverError(" ".join(f"{device.name} ({device.address}): {device.problem}." for device in found))
    return sound


def read_all_devices() -> list[Device]:
    """The same with those that are sick, which say so in `problem`. Raises DriverError where no driver answers."""
    return _read_gpus() or [read_cpu()]


def order_note() -> str | None:
    """What to know of CUDA_VISIBLE_DEVICES where it counts GPUs that CUDA on its own would count in another order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    by_index = any(entry.strip().isdecimal() for entry in visible.split(","))
    if not by_index or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return None
    if len({gpu.card_name or gpu.name for gpu in read_gpus()}) < 2:
        return None
    return (
        f"CUDA_VISIBLE_DEVICES={visible} is read in the order of nvidia-smi, by PCI bus; the GPUs here differ, and "
        "CUDA on its own would count the fastest first. Name them by uuid, or set CUDA_DEVICE_ORDER=PCI_BUS_ID."
    )


def process_bytes(uuid: str, process_id: int) -> int | None:
    """Memory that one process holds on the GPU with this uuid; None where NVML does not say (containers, no driver)."""
    found = usage(uuid)
    return None if found is None else found.processes.get(process_id)


def read_cpu() -> Device:
    """The CPU with the memory free to this process: the machine's, or its control group's where that is smaller."""
    import psutil  # noqa: PLC0415 - the planner computes without the machine; only reading it needs the library

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    limit, used = _cgroup_memory()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    name, cores = f"CPU, {_cores()} cores", _cores()
    return Device(
        0, "cpu", name, "cpu", total, free, None, "cpu", cores, multiplies_bfloat16=not _BFLOAT16.isdisjoint(_flags())
    )


def _flags() -> set[str]:
    """What the CPU's instructions can do; empty where the system does not say."""
    try:
        lines = _CPU_INFORMATION.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(found, []))


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
    entries = choose_visible(read_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return [_device(place, gpu) for place, gpus in enumerate(entries) for gpu in gpus]


def _device(place: int, gpu: Gpu) -> Device:
    """A GPU as a plan sees it. `place`: among the visible ones, as CUDA counts them."""
    card_class = _device_class(gpu.card_name or gpu.name, gpu.card_bytes or gpu.total_bytes)
    profile = re.search(r"MIG (\S+)$", gpu.name) if gpu.slice is not None else None
    return Device(
        index=place,
        kind="cuda",
        name=gpu.name,
        uuid=gpu.uuid,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        compute_capability=gpu.compute_capability,
        device_class=f"{card_class}-mig-{_slug(profile[1])}" if profile else card_class,
        slice=gpu.slice,
        card_class=card_class if profile else None,
        card_share=gpu.card_share,
        problem=gpu.problem or without_kernels(gpu.compute_capability),
        has_liger=has_liger(),
    )


def has_liger() -> bool:
    """Whether Liger's kernels, and the Triton that compiles them, are installed beside this process."""
    return all(find_spec(name) is not None for name in ("liger_kernel", "triton"))


def without_kernels(capability: tuple[int, int] | None) -> str | None:
    """The sentence about a GPU that torch has no kernels for; None for any other device."""
    if capability is None or capability >= OLDEST_CAPABILITY:
        return None
    major, minor = capability
    return f"it has compute capability {major}.{minor}, and PyTorch's kernels begin at 7.5 (T4, RTX 20)"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _device_class(name: str, total_bytes: int) -> str:
    """The catalogue's slug of the card with this driver name and size, else one made of both."""
    gpu = match_driver_name(name, total_bytes)
    if gpu is not None:
        return f"nvidia-{gpu.id}"
    return f"nvidia-{_slug(name).removeprefix('nvidia-')}-{round(total_bytes / GIB)}gb"


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
