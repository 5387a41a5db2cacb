"""What the fork server imports once, so that a child starts with it: 5 s of imports, no CUDA, no threads.

transformers imports a model's module when the model is first built; those of every family the planner knows are
imported here.

What they leave is then put out of the garbage collector's sight: a child's first collection would walk half a million
objects for 0.4 s, and copy the pages they lie in.
"""

import gc
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from core.limited.lifetime import end_with_parent
from worker.environment import start_again_without_secrets
from worker.training.unforked_cuda import cuda_untouched

end_with_parent()  # a worker that is killed now should not leave its imports behind
start_again_without_secrets()  # here, as a fork server is started with the environment that the worker itself needs

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it looks for optional kernels and complains

FAMILIES = (
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Within, torch.compile raises. bitsandbytes has it compile what it runs on devices other than CPUs and CUDA, and
    does without where that fails: a second and 50 MB of imports, for none but the runs that are to be compiled."""
    torch: Any = importlib.import_module("torch")  # not before this program has started again
    real = torch.compile
    torch.compile = _refuse
    try:
        yield
    finally:
        torch.compile = real


def _refuse(*_: object, **_options: object) -> NoReturn:
    raise RuntimeError("Nothing is compiled before the fork.")


with cuda_untouched(), _uncompiled():
    importlib.import_module("worker.training.child")  # the loop with torch, PEFT and bitsandbytes
    for _family in FAMILIES:
        importlib.import_module(f"transformers.models.{_family}.configuration_{_family}")
        importlib.import_module(f"transformers.models.{_family}.modeling_{_family}")
gc.collect()
gc.freeze()
