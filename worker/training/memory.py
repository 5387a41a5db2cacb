"""What the process holds, what it may hold, and how running out of it looks on each device."""

import ctypes
import errno
import gc
import os
import re
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError

from worker.protocol import MemoryReport
from worker.training.device_use import DeviceUse

# glibc's malloc.h. Large freed blocks go back to the kernel by default, and every training step faults the same pages
# in again: up to 1.5x on a CPU. 2**30 keeps them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 2**30

MEASURED_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")  # whose versions move memory

_PAGE_BYTES = resource.getpagesize()

# The types in which running out of memory arrives, beside others that mean something else.
MEMORY_ERRORS = (MemoryError, RuntimeError, OSError, SafetensorError, torch.cuda.DeferredCudaCallError)
_OUT_OF_MEMORY = re.compile(
    r"\bout of memory\b(?! (?:bounds|range))"  # CUDA's runtime and driver, NCCL's "Cuda failure 2 'out of memory'"
    r"|_ALLOC(?:ATION)?_FAILED\b"  # cuBLAS, cuSOLVER, cuSPARSE and cuDNN
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate"  # its word where no room is left for a handle
    r"|Failed to CUDA (?:host )?[cm]alloc"  # NCCL's own
    r"|can't allocate memory|not enough memory: you tried|Cannot allocate memory|std::bad_alloc"  # the host's
)


class MemoryLimitError(MemoryError):
    """Raised when the resident set has grown beyond the limit of this run."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or what it was raised from, means that a GPU's or the machine's memory ran out."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, MEMORY_ERRORS) and _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


def keep_freed_pages() -> None:
    """Let malloc keep what is freed for the next step. Does nothing where the C library has no `mallopt`."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def give_back_pages() -> None:
    """Return all free pages to the kernel. Does nothing where the C library has no `malloc_trim`."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def resident_bytes() -> int:
    """Resident set of this process now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def release() -> None:
    """Give back what is no longer referenced, before a phase that needs room."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class MemoryWatch:
    """Measures one run on one device and holds it to its limit."""

    def __init__(self, device: torch.device, limit_bytes: int | None) -> None:
        self._device = device
        self._limit_bytes = limit_bytes
        self._probed_bytes: int | None = None
        self._use: DeviceUse | None = None
        if device.type == "cuda":
            self._use = DeviceUse(device)
            # 256 KiB steps instead of whole segments: batches of changing length do not fragment the heap.
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
            torch.cuda.set_device(device)
            if limit_bytes is not None:
                total_bytes = torch.cuda.get_device_properties(device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)

    def check(self) -> None:
        """Raises MemoryLimitError where the resident set is above the limit. CUDA's allocator checks by itself."""
        if self._limit_bytes is None or self._device.type != "cpu":
            return
        held_bytes = resident_bytes()
        if held_bytes > self._limit_bytes:
            raise MemoryLimitError(
                f"The process holds {held_bytes / 2**20:.0f} MiB; its limit is {self._limit_bytes / 2**20:.0f} MiB."
            )

    def settle(self) -> None:
        """Between steps on a CPU: once kept but fragmented pages exceed what the probe needed, give them back."""
        if self._probed_bytes is not None and resident_bytes() > self._probed_bytes:
            give_back_pages()

    def current_bytes(self) -> int:
        """Allocated bytes on CUDA, the resident set on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return resident_bytes()

    def report(self, when: Literal["probe", "end"], *, as_planned: bool = True) -> MemoryReport:
        """The peaks so far. On a CPU there is no allocator to ask: all three are the peak resident set.

        `as_planned`: whether the run is what was planned, so that the figures say something of the plan.
        """
        versions = {package: version(package) for package in MEASURED_PACKAGES}
        if self._use is not None:
            return self._report_of_gpu(self._use, when, versions, as_planned=as_planned)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if when == "probe":
            self._probed_bytes = peak_bytes
        return MemoryReport(when, peak_bytes, peak_bytes, peak_bytes, versions, as_planned=as_planned)

    def _report_of_gpu(
        self, use: DeviceUse, when: Literal["probe", "end"], versions: dict[str, str], *, as_planned: bool
    ) -> MemoryReport:
        """The driver says what is held now; the allocator, how much more it has held. Where the driver cannot tell
        what is ours, what the allocator had is the least that it can have been."""
        peak_reserved_bytes = torch.cuda.max_memory_reserved(self._device)
        own_bytes = use.own_bytes()
        besides_bytes = -1 if own_bytes is None else own_bytes - torch.cuda.memory_reserved(self._device)
        return MemoryReport(
            when=when,
            peak_allocated_bytes=torch.cuda.max_memory_allocated(self._device),
            peak_reserved_bytes=peak_reserved_bytes,
            device_bytes=max(0, besides_bytes) + peak_reserved_bytes,
            versions=versions,
            is_attributed=besides_bytes >= 0,
            as_planned=as_planned,
        )
