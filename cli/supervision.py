"""Keeping the processes of a service running, and stopping them all: also when this process is killed outright.

Each program runs in a session of its own, so that Ctrl-C in a terminal reaches only the supervisor, which stops them
in order, and so that whatever a program leaves behind can be found by its process group. Against SIGKILL of the
supervisor, Linux is asked to send every program SIGTERM when its parent dies (PR_SET_PDEATHSIG); each program then
stops its own children. Other systems have no such request: there the programs outlive a supervisor that is killed.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.log_files import open_log, read_tail, repeat_warnings
from cli.terminal import warning_line
from core.errors import ServiceUnavailableError

__all__ = ["Program", "Runner", "supervise"]

SHORT_LIFE_SECONDS = 30.0  # a program that ends sooner than this did not get going
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 15.0
SHORT_LIVES_ALLOWED = 6
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Program:
    """Something to keep running.

    With `once`, its end is no failure and it is not started again; nor is it after ending with `final_code`.
    """

    name: str  # of its log file, and what people read
    arguments: tuple[str, ...]
    grace_seconds: float  # from SIGTERM to SIGKILL
    once: bool = False
    final_code: int | None = None


class Runner:
    """One program, kept running until `stop`."""

    def __init__(self, program: Program, environment: Mapping[str, str], log_directory: Path) -> None:
        self.program = program
        self.log_path = log_directory / f"{program.name}.log"
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def process_id(self) -> int | None:
        """The process that runs now; None between two of them."""
        return self._process.pid if self._process else None

    async def keep(self) -> None:
        """Start the program, and again with growing delays when it dies.

        Returns after `stop`, or at the end of a `once` program. Raises ServiceUnavailableError where the program dies
        right after its start again and again.
        """
        short_lives = 0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            code = await self._run()
            if self._stopping.is_set():
                return
            if code == self.program.final_code:
                warning_line(self.program.name, "has ended as it was asked to and stays down")
                return
            if self.program.once:
                if code != 0:
                    warning_line(self.program.name, f"ended with {_ending(code)}; see {self.log_path}")
                return
            short_lives = short_lives + 1 if time.monotonic() - started_at < SHORT_LIFE_SECONDS else 1
            if short_lives >= SHORT_LIVES_ALLOWED:
                raise ServiceUnavailableError(
                    f"{self.program.name} ended {short_lives} times right after its start, last with {_ending(code)}. "
                    f"The end of {self.log_path}:\n{read_tail(self.log_path)}"
                )
            delay = min(FIRST_DELAY_SECONDS * 2 ** (short_lives - 1), LONGEST_DELAY_SECONDS)
            warning_line(self.program.name, f"ended with {_ending(code)}; starting it again in {delay:g} s")
            await _wait_for(self._stopping, delay)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ask the program to end; after its grace, or when `hurry` is set, end it and all that it started."""
        self._stopping.set()
        process = self._process
        if process is None:
            return
        _signal(process.pid, signal.SIGTERM)
        ended = asyncio.create_task(process.wait())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({ended, hurried}, timeout=self.program.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            warning_line(self.program.name, "did not stop in time and is killed")
        _kill_group(process.pid)
        await ended

    async def _run(self) -> int:
        with open_log(self.log_path) as log:
            position = log.tell()
            process = await asyncio.create_subprocess_exec(
                *self.program.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
                preexec_fn=partial(_end_with_parent, os.getpid()),
            )
        self._process = process
        if self._stopping.is_set():  # while it was being started
            _signal(process.pid, signal.SIGKILL)
        warn = partial(warning_line, self.program.name)
        repeating = asyncio.create_task(repeat_warnings(self.log_path, position, warn))
        try:
            return await process.wait()
        finally:
            repeating.cancel()
            _kill_group(process.pid)  # what a dead worker leaves would hold its device
            self._process = None


async def supervise(stages: Sequence[Sequence[Runner]], when_ready: Coroutine[None, None, None] | None = None) -> None:
    """Keep every runner running until SIGINT or SIGTERM, then stop them stage by stage, those of a stage together.

    `when_ready` is what to do meanwhile, such as waiting for an answer and saying where it came from. A second signal
    stops without grace. Raises what `when_ready` and `Runner.keep` raise, after everything has stopped.
    """
    stopping, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stopping.is_set() else stopping).set())
    kept = asyncio.gather(*(runner.keep() for stage in reversed(stages) for runner in stage))
    stopped = asyncio.create_task(stopping.wait())
    watched: set[asyncio.Future[Any]] = {kept, stopped}
    meanwhile = asyncio.create_task(when_ready) if when_ready else None
    try:
        if meanwhile is not None:
            await asyncio.wait({*watched, meanwhile}, return_when=asyncio.FIRST_COMPLETED)
            if meanwhile.done():
                meanwhile.result()
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        if meanwhile is not None:
            meanwhile.cancel()
        for stage in stages:
            await asyncio.gather(*(runner.stop(hurry) for runner in stage))
    await kept


def _end_with_parent(parent: int) -> None:
    """In the new process, before its program: have the kernel stop it when its parent dies."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the request was made
        os._exit(1)


def _kill_group(process_id: int) -> None:
    """Kill what is left of a program's process group, whose id is the program's own."""
    try:
        os.killpg(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return


def _signal(process_id: int, number: signal.Signals) -> None:
    try:
        os.kill(process_id, number)
    except ProcessLookupError:
        return


def _ending(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
