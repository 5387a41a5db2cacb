"""GPUs as NVML tells of them: whole cards and MIG slices, each with its memory or with what is wrong with it.

NVML's types stay here. What a GPU is worth to a plan is said in `planner.devices`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from planner.errors import DriverError

_MIG = "MIG-"
_PREFIXES = ("GPU-", _MIG)


@dataclass(frozen=True)
class Gpu:
    """A whole card, or a MIG slice of one. Of a sick one only `card` and `problem` are sure to be known."""

    card: int  # its place in nvidia-smi's list
    name: str
    uuid: str = ""  # GPU-… or MIG-…
    total_bytes: int = 0
    free_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
    problem: str | None = None  # why nothing can be trained on it

    # Of a slice: its place on the card, and the card it was cut from.
    slice: int | None = None
    card_name: str = ""
    card_uuid: str = ""
    card_bytes: int = 0
    card_share: float = 1.0  # of the card's compute


@dataclass(frozen=True)
class Usage:
    """What a GPU has in use now. In a container NVML may list no processes, or list them by the host's ids."""

    used_bytes: int
    processes: dict[int, int | None]  # bytes by process id; None where the driver does not say


def read_gpus() -> list[Gpu]:
    """Every card in NVML's order, one with MIG as its slices; none without a driver.

    A card that does not answer is listed with its `problem`. Raises DriverError where the driver itself does not.
    """
    with _nvml() as nvml:
        if nvml is None:
            return []
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise DriverError(f"The NVIDIA driver stopped answering: {error}. Check `nvidia-smi`.") from error
        return [gpu for index in range(count) for gpu in _read_card(nvml, index)]


def usage(uuid: str) -> Usage | None:
    """What is in use on the card or slice with this uuid; None where the driver does not say."""
    try:
        with _nvml() as nvml:
            return None if nvml is None else _usage(nvml, uuid)
    except DriverError:
        return None


def _usage(nvml: Any, uuid: str) -> Usage | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    sizes = {int(process.pid): process.usedGpuMemory for process in listed}
    held = {process_id: None if size is None else int(size) for process_id, size in sizes.items()}
    return Usage(int(memory.total - memory.free), held)


def choose_visible(gpus: Sequence[Gpu], visible: str | None) -> list[list[Gpu]]:
    """What a value of CUDA_VISIBLE_DEVICES leaves, in its order, by CUDA's rules; None: everything.

    Each entry is one card or slice, or all slices of a card with MIG. An index is nvidia-smi's, a uuid may be
    shortened as long as one GPU alone begins so; the first entry that names nothing ends the list, and a GPU named
    twice leaves none.
    """
    cards: dict[int, list[Gpu]] = {}
    for gpu in gpus:
        cards.setdefault(gpu.card, []).append(gpu)
    if visible is None:
        return list(cards.values())
    chosen: list[list[Gpu]] = []
    for entry in visible.split(","):
        named = _named(entry.strip(), gpus, cards)
        if not named:
            break
        if any(gpu in earlier for gpu in named for earlier in chosen):
            return []
        chosen.append(named)
    return chosen


def _named(entry: str, gpus: Sequence[Gpu], cards: dict[int, list[Gpu]]) -> list[Gpu]:
    if entry.isdecimal():
        return cards.get(int(entry), [])
    if not entry.startswith(_PREFIXES):
        return []
    slices = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    if slices:
        return slices if len(slices) == 1 else []
    uuids = {gpu.card_uuid for gpu in gpus if gpu.card_uuid.startswith(entry)}
    return [gpu for gpu in gpus if gpu.card_uuid in uuids] if len(uuids) == 1 else []


@contextmanager
def _nvml() -> Iterator[Any]:
    """The initialised module, or None without a driver. Raises DriverError where the driver does not start."""
    import pynvml  # noqa: PLC0415 - the planner computes without the machine; only reading it needs the library

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        yield None
        return
    except pynvml.NVMLError as error:
        raise DriverError(f"The NVIDIA driver does not start: {error}. Check `nvidia-smi`.") from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _read_card(nvml: Any, index: int) -> list[Gpu]:
    found = Gpu(index, f"GPU {index}")
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        found = replace(found, uuid=_text(nvml.nvmlDeviceGetUUID(handle)), name=_text(nvml.nvmlDeviceGetName(handle)))
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        found = replace(
            found,
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            compute_capability=(int(major), int(minor)),
            problem=_closed_by_compute_mode(nvml, handle, index),
        )
        return _slices(nvml, handle, found) if _is_cut(nvml, handle) else [found]
    except nvml.NVMLError as error:
        return [replace(found, problem=f"the driver says: {error}")]


def _is_cut(nvml: Any, handle: Any) -> bool:
    """Whether MIG is on."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _slices(nvml: Any, handle: Any, card: Gpu) -> list[Gpu]:
    most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    slices = []
    for place in range(most):
        try:
            slices.append(_read_slice(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place), card, place, most))
        except nvml.NVMLError_NotFound:
            continue
        except nvml.NVMLError as error:
            sick = replace(card, slice=place, uuid="", card_uuid=card.uuid, problem=f"the driver says: {error}")
            slices.append(sick)
    advice = f"`nvidia-smi mig -i {card.card} -cgi … -C` makes one, `nvidia-smi -i {card.card} -mig 0` turns MIG off"
    return slices or [replace(card, problem=f"MIG is on and there is no slice: {advice}")]


def _read_slice(nvml: Any, handle: Any, card: Gpu, place: int, most: int) -> Gpu:
    memory, attributes = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetAttributes(handle)
    name = _text(nvml.nvmlDeviceGetName(handle))
    if _MIG.rstrip("-") not in name:  # older drivers give a slice its card's name
        name = f"{card.name} MIG {attributes.gpuInstanceSliceCount}g.{round(attributes.memorySizeMB / 1024)}gb"
    return replace(
        card,
        slice=place,
        name=name,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        card_name=card.name,
        card_uuid=card.uuid,
        card_bytes=card.total_bytes,
        card_share=min(1.0, attributes.computeInstanceSliceCount / most),
    )


def _closed_by_compute_mode(nvml: Any, handle: Any, index: int) -> str | None:
    """A run has two processes on the GPU, the one that trains and the one that proves its export."""
    try:
        mode = nvml.nvmlDeviceGetComputeMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None
    if mode == nvml.NVML_COMPUTEMODE_PROHIBITED:
        closed = "its compute mode is Prohibited: no program may use it"
    elif mode in (nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS, nvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD):
        closed = "its compute mode is Exclusive_Process, and a job needs two processes on it, one to prove the export"
    else:
        return None
    return f"{closed}. `nvidia-smi -i {index} -c DEFAULT` opens it"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
