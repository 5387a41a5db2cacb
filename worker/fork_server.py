"""The server that the processes of jobs are forked from, and another in its place where it dies or hangs.

Whoever asks a fork server for a process, or for how one ended, waits for its answer without a limit of
multiprocessing's own: one that is stopped or stuck would hold its worker, and a job under a lease that is renewed, for
good. So it is killed when it takes too long, and multiprocessing starts another.
"""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess

import structlog

__all__ = ["ForkServerError", "context", "join", "start", "start_fork_server", "warm_up"]

PRELOAD = "worker.training.preload"
IMPORT_SECONDS = (
    600.0  # that a new fork server may take until it forks: 5 s of imports, on a cold disk and a busy machine
)
_CUDA_INITIALISED = 70  # exit code

context = multiprocessing.get_context("forkserver")
# A fork server ends with the thread that starts it, and with it the processes of all jobs: so none that may end does.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fork-server")
log = structlog.get_logger()


class ForkServerError(RuntimeError):
    """Raised when the fork server has no use: it dies or hangs, or nothing forked from it can use CUDA."""


def start_fork_server() -> None:
    """Start the fork server, which imports while its worker goes on, and ends with it."""
    context.set_forkserver_preload([PRELOAD])
    _STARTER.submit(multiprocessing.forkserver.ensure_running).result()


def warm_up() -> None:
    """Wait until the fork server's imports are done. Raises ForkServerError."""
    start_fork_server()
    process = context.Process(target=_prove_fit, args=(PRELOAD,))
    try:
        with _killed_after(IMPORT_SECONDS):
            _STARTER.submit(process.start).result()
    except (EOFError, OSError) as error:
        raise ForkServerError("The fork server died while it imported; its traceback is above.") from error
    process.join()
    if process.exitcode == _CUDA_INITIALISED:
        raise ForkServerError("The fork server has initialised CUDA, which no process forked from it could use then.")
    if process.exitcode:
        raise ForkServerError("The fork server cannot import what training needs; the traceback is above.")


def start(process: ForkServerProcess, patience_seconds: float) -> None:
    """Start the process: by another fork server where the one there is takes longer than that, or has died.

    Raises ForkServerError where that one is no better.
    """
    try:
        with _killed_after(patience_seconds):
            _STARTER.submit(process.start).result()
    except (EOFError, OSError):
        _kill()
        try:
            with _killed_after(IMPORT_SECONDS):
                _STARTER.submit(process.start).result()
        except (EOFError, OSError) as error:
            raise ForkServerError(f"No process can be forked here, by a new fork server either: {error!r}") from error


def join(process: ForkServerProcess, patience_seconds: float) -> None:
    """Wait for the end of a process that has been killed; of a fork server that never tells of it, there is another."""
    with _killed_after(patience_seconds):
        process.join()


@contextmanager
def _killed_after(seconds: float) -> Iterator[None]:
    """Kill the fork server when the block takes longer: what waits for its answer reads the end of a pipe then."""

    def give_up() -> None:
        log.error("fork_server_hangs", seconds=seconds)
        _kill()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill() -> None:
    """Kill the fork server and wait until it is dead; reaping it is left to multiprocessing, which then starts another.

    Its processes end with it.
    """
    process_id: int | None = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if process_id is None:
        return
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(process_id, signal.SIGKILL)
        os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)


def _prove_fit(preload: str) -> None:
    """What the first fork runs, when the fork server has imported everything. It passes over an import that fails;
    here that is repeated, and its traceback shown."""
    importlib.import_module(preload)
    from worker.training.unforked_cuda import can_use_cuda  # noqa: PLC0415 - imports torch, as the fork server has

    if not can_use_cuda():
        sys.exit(_CUDA_INITIALISED)
