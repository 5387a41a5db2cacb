"""Starting, reading and ending the training child.

The child is forked from a fork server that has torch, transformers and PEFT imported and has not touched CUDA: it
is at its first step in a fraction of a second, CUDA never meets a fork, and its exit gives all memory back. It
leads a process group of its own, so that ending it ends whatever it started.
"""

import os
import selectors
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Self

import orjson

from core.limited.lifetime import end_with_parent
from worker import fork_server
from worker.protocol import Report, RunRequest, decode_report

PATIENCE_SECONDS = 180.0
_READ_BYTES = 65_536


class TrainingChild:
    """One child at work on one request.

    A fork server that does not answer for `patience_seconds` is replaced. Raises ForkServerError where that is no help.
    """

    def __init__(self, request: RunRequest, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        reader, writer = os.pipe()
        with Connection(writer, readable=False) as connection:
            self._process: ForkServerProcess = fork_server.context.Process(target=_enter, args=(request, connection))
            fork_server.start(self._process, patience_seconds)
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
        fork_server.join(self._process, self._patience_seconds)
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


def _enter(request: RunRequest, connection: Connection) -> None:
    os.setpgid(0, 0)
    end_with_parent()  # the fork server ends with its worker, and we with it
    if request.visible_devices is not None:
        # By uuid: CUDA would count by speed where NVML counts by PCI bus, and knows a MIG slice by nothing else.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(request.visible_devices)
    from worker.training.child import main  # noqa: PLC0415 - already imported in the fork server, never in the worker

    main(request, connection.fileno())
