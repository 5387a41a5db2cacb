"""Decoder layers through torch.compile, for the batches of training steps and nothing else.

Layers of one kind share their compiled code, so that a model of any depth compiles one layer of each kind. Sizes are
symbols in it; what remains to tell batches apart (a mask or none, one row or several) makes a few variants. Modules
stay what they are: no name of a parameter changes, and a checkpoint goes on with or without.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import TorchDynamoException

from worker.training.memory import release
from worker.training.model.gradients import NoGradientError
from worker.training.model.loading import LoadedModel, decoder_layers
from worker.training.reporting import Reporter

Result = TypeVar("Result")
BACKEND = "inductor"
_VARIANTS = 32  # of one layer's code, above which torch would leave the next ones uncompiled


@dataclass
class Compilation:
    """Whether a run's decoder layers are compiled: from its start, if it asks for that, until the compiler fails."""

    is_on: bool


def compile_layers(loaded: LoadedModel, cache: Path) -> None:
    """Have every decoder layer compiled when it is next called. The compiler's files lie in `cache`, emptied here: a
    run that was killed leaves half-written ones, which the compiler would take for whole."""
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    dynamo_config.recompile_limit = _VARIANTS
    for layer in decoder_layers(loaded.causal_model):
        layer.compile(dynamic=True, backend=BACKEND)


def outlast_compiler(
    compilation: Compilation, work: Callable[[], Result], undo: Callable[[], None], reporter: Reporter
) -> Result:
    """`work()`. Where the compiler fails in it, or what it made trains less than all there is to train: `undo()`, and
    `work()` again without, as all that follows."""
    try:
        return work()
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0]
    except NoGradientError as error:
        if not compilation.is_on:
            raise
        reason = error.message.partition(":")[0]
    torch.compiler.set_stance("force_eager")
    compilation.is_on = False
    undo()
    release()
    reporter.warn(f"torch.compile failed ({reason}): training goes on without it, with the same result.")
    return work()
