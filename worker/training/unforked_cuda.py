"""Importing libraries that ask for GPUs, in a process that is forked afterwards.

CUDA cannot be used behind a fork of a process that has initialised it, and the plain questions of `torch.cuda` do
initialise it: bitsandbytes asks for every GPU's compute capability when it is imported, and torch's own answer from
NVML (PYTORCH_NVML_BASED_CUDA_CHECK) covers neither that nor MIG slices.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import torch

from planner.devices import read_all_devices


class EarlyCudaError(RuntimeError):
    """Raised when an import would initialise CUDA before the fork."""


@contextmanager
def cuda_untouched() -> Iterator[None]:
    """Within, NVML says which GPUs there are and what they are capable of, and whatever else needs CUDA raises
    EarlyCudaError. Does nothing where torch was built without CUDA."""
    if not torch.backends.cuda.is_built():
        yield
        return
    gpus = [device for device in read_all_devices() if device.compute_capability is not None]

    def capability(device: object = None) -> tuple[int, int]:
        place = device if isinstance(device, int) else getattr(device, "idx", getattr(device, "index", None))
        found = gpus[place or 0].compute_capability
        assert found is not None, "only such GPUs are listed"
        return found

    answers: dict[object, dict[str, Callable[..., object]]] = {
        torch.cuda: {
            "is_available": lambda: bool(gpus),
            "device_count": lambda: len(gpus),
            "get_device_capability": capability,
            "_lazy_init": _refuse,
        },
        torch.accelerator: {"device_count": lambda: len(gpus)},
    }
    with ExitStack() as undo:
        for module, functions in answers.items():
            for name, answer in functions.items():
                undo.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, answer)
        yield


def can_use_cuda() -> bool:
    """Whether CUDA was not initialised in the process that this one was forked from."""
    return not torch.cuda._is_in_bad_fork()


def _refuse() -> NoReturn:
    raise EarlyCudaError("A library initialises CUDA when it is imported; no process forked after that could use it.")
