"""Running out of memory, in the words of every library, and what else sounds like it."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from planner.nvml import Usage
from worker.training.device_use import IDLE_BYTES, attributed_bytes
from worker.training.memory import is_out_of_memory

NCCL = "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error, NCCL version 2.29.7\nncclUnhandledCudaError: "
GIB = 1 << 30


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79.11 GiB in all"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError(NCCL + "Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"),
        RuntimeError(NCCL + "Last error:\nFailed to CUDA calloc async 608 bytes"),
        torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization: CUDA error: out of memory"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:131] . DefaultCPUAllocator: can't allocate memory: you tried to "
                     "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40 bytes."),
        RuntimeError("unable to mmap 4096 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
    ids=lambda error: str(error)[:40],
)  # fmt: skip
def test_memory_that_ran_out_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    outer = RuntimeError("The weights could not be loaded.")
    outer.__cause__ = error
    assert is_out_of_memory(outer), "also where another error was raised from it"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(...)`"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: too many resources requested for launch"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        RuntimeError("out of resource: shared memory, Required: 147456, Hardware limit: 101376"),
        RuntimeError(NCCL + "Call to CUDA function failed.\nLast error:\nCuda failure 700"),
        RuntimeError("index 5 is out of bounds for dimension 0 with size 3"),
        RuntimeError("the address is out of memory bounds"),
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while deserializing header: HeaderTooLarge"),
        ValueError("out of memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_is_no_lack_of_memory_is_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("processes", "before", "expected"),
    [
        ({7: 5 * GIB, 8: 3 * GIB}, 0, 5 * GIB),  # our own line
        ({7: 5 * GIB}, 30 * GIB, 5 * GIB),
        ({4711: 5 * GIB}, 30 * GIB, 5 * GIB),  # a container: the host's id, but nobody else is there
        ({4711: 5 * GIB, 4712: 3 * GIB}, 0, None),  # one of the two is ours
        ({}, IDLE_BYTES, 40 * GIB - IDLE_BYTES),  # hidden, on a card that was idle
        ({7: None}, 0, 40 * GIB),  # listed without a size
        ({}, IDLE_BYTES + 1, None),  # hidden, on a card that others use
    ],
)
def test_only_what_is_certainly_ours_is_attributed(
    processes: dict[int, int | None], before: int, expected: int | None
) -> None:
    assert attributed_bytes(Usage(40 * GIB, processes), 7, before) == expected
