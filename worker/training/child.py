"""The training child: one process, one attempt at one job, everything it learns written to the report pipe."""

import sys

import torch
from safetensors import SafetensorError

from core.errors import InvalidModelError, TunewrightError
from worker.protocol import STOPPED_EXIT_CODE, ErrorReport, Phase, RunRequest
from worker.training.export.verification import Verifier
from worker.training.libraries import quiet
from worker.training.loop.recipe import run
from worker.training.memory import MEMORY_ERRORS, is_out_of_memory, keep_freed_pages
from worker.training.reporting import Reporter
from worker.training.stopping import StopRequested, StopSignal

FAILED_EXIT_CODE = 1


def main(request: RunRequest, report_fd: int) -> None:
    """Run `request` and report on `report_fd`. Returns when the result is reported.

    Exits with STOPPED_EXIT_CODE where it was told to stop and with 1 behind an ErrorReport. An error that nobody
    foresaw is left to end the process with its traceback: the supervisor sees a crash and may start another attempt.
    """
    quiet()
    stop = StopSignal()
    stop.install()
    reporter = Reporter(report_fd, stop)
    verifier = Verifier(report_fd)  # forked first, while there is nothing here to inherit
    try:
        _prepare_process()
        reporter.send(run(request, reporter, stop, verifier))
    except StopRequested:
        sys.exit(STOPPED_EXIT_CODE)
    except TunewrightError as error:
        reporter.send(ErrorReport(error.code, error.message, error.param, reporter.phase, error.type))
        sys.exit(FAILED_EXIT_CODE)
    except MEMORY_ERRORS as error:
        said = _expected(error, request, reporter.phase)
        if said is None:
            raise
        reporter.send(said)
        sys.exit(FAILED_EXIT_CODE)
    finally:
        verifier.close()


def _expected(error: Exception, request: RunRequest, phase: Phase | None) -> ErrorReport | None:
    """What an error of a library means, where that is known."""
    if is_out_of_memory(error):
        return ErrorReport("out_of_memory", _first_line(error), None, phase)
    if isinstance(error, SafetensorError) and phase is Phase.LOADING:
        message = f"The weights of {request.base_model} cannot be read: {error}."
        return ErrorReport("invalid_model", message, "model", phase, InvalidModelError.type)
    return None


def _prepare_process() -> None:
    keep_freed_pages()
    torch.backends.cuda.matmul.allow_tf32 = True  # float32 products are adapters' only, as in mixed precision


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
