"""Starting, reading and ending the training child.

The child is forked from a fork server that has torch, transformers and PEFT imported and has not touched CUDA: it
is at its first step in a fraction of a second, CUDA never meets a fork, and its exit gives all memory back. It
leads a process group of its own, so that ending it ends whatever it started.
"""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Self

import orjson

from core.limited.lifetime import end_with_parent
from worker.protocol import Report, RunRequest, decode_report

PRELOAD = "worker.training.preload"
_READ_BYTES = 65_536
_CUDA_INITIALISED = 70  # exit code

_context = multiprocessing.get_context("forkserver")


def start_fork_server() -> None:
    """Start the fork server, which imports while its worker goes on. It ends with the thread that calls this."""
    _context.set_forkserver_preload([PRELOAD])
    multiprocessing.forkserver.ensure_running()


class ForkServerError(RuntimeError):
    """Raised when the fork server has no use: it died while it imported, or nothing forked from it can use CUDA."""


def warm_up() -> None:
    """Wait until the fork server's imports are done. Raises ForkServerError."""
    start_fork_server()
    process = _context.Process(target=_prove_fit, args=(PRELOAD,))
    try:
        process.start()
    except (EOFError, OSError) as error:
        raise ForkServerError("The fork server died while it imported; its traceback is above.") from error
    process.join()
    if process.exitcode == _CUDA_INITIALISED:
        raise ForkServerError("The fork server has initialised CUDA, which no process forked from it could use then.")
    if process.exitcode:
        raise ForkServerError("The fork server cannot import what training needs; the traceback is above.")


class TrainingChild:
    """One child at work on one request."""

    def __init__(self, request: RunRequest) -> None:
        reader, writer = os.pipe()
        with Connection(writer, readable=False) as connection:
            self._process: ForkServerProcess = _context.Process(target=_enter, args=(request, connection))
            self._process.start()  # a fork server that has died is started again
        os.set_blocking(reader, False)
        self._reader = reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Kill the child where whoever watched it gave up; else leave it to `close`."""
        if error_type is not None:
            self.kill()

    @property
    def process_id(self) -> int:
        """The child's process id, which is also its group's."""
        assert self._process.pid is not None
        return self._process.pid

    def reports(self, wait_seconds: float) -> Iterator[list[Report]]:
        """Batches of reports as they come, an empty batch after each silent `wait_seconds`, until the pipe closes."""
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._reader, selectors.EVENT_READ)
            while True:
                if not selector.select(wait_seconds):
                    yield []
                    continue
                chunk = os.read(self._reader, _READ_BYTES)
                if not chunk:
                    return
                *lines, buffer = (buffer + chunk).split(b"\n")
                yield [decode_report(orjson.loads(line)) for line in lines if line]

    def stop(self) -> None:
        """Ask the child to write a checkpoint and leave."""
        self._signal(signal.SIGTERM, group=False)

    def kill(self) -> None:
        """End the child and whatever it started, now."""
        self._signal(signal.SIGKILL, group=True)

    def close(self, wait_seconds: float) -> int:
        """Wait for the exit, kill what is left after `wait_seconds`; returns the exit code, minus a signal's number."""
        self._process.join(wait_seconds)
        self.kill()
        self._process.join()
        os.close(self._reader)
        exit_code = self._process.exitcode
        self._process.close()
        return exit_code if exit_code is not None else -signal.SIGKILL

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        try:
            if group:
                os.killpg(self.process_id, number)
            else:
                os.kill(self.process_id, number)
        except ProcessLookupError:
            pass


def _prove_fit(preload: str) -> None:
    """What the first fork runs, when the fork server has imported everything. It passes over an import that fails;
    here that is repeated, and its traceback shown."""
    importlib.import_module(preload)
    from worker.training.unforked_cuda import can_use_cuda  # noqa: PLC0415 - imports torch, as the fork server has

    if not can_use_cuda():
        sys.exit(_CUDA_INITIALISED)


def _enter(request: RunRequest, connection: Connection) -> None:
    os.setpgid(0, 0)
    end_with_parent()  # the fork server ends with its worker, and we with it
    if request.visible_devices is not None:
        # By uuid: CUDA would count by speed where NVML counts by PCI bus, and knows a MIG slice by nothing else.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(request.visible_devices)
    from worker.training.child import main  # noqa: PLC0415 - already imported in the fork server, never in the worker

    main(request, connection.fileno())
