"""Keeping the processes of a service running, and stopping them all: also when this process is killed outright.

Each program runs in a session of its own, so that Ctrl-C in a terminal reaches only the supervisor, which stops them
in order, and so that whatever a program leaves behind can be found by its process group. A program that dies is
started again for ever, with growing delays, while the others go on; one that gives no sign of life is killed first.
Against SIGKILL of the supervisor, Linux is asked to send every program SIGTERM when its parent dies
(PR_SET_PDEATHSIG), and the reaper ends those that do not heed it.
"""

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli.log_files import open_log, read_tail, repeat_warnings
from cli.reaper import Reaper
from cli.terminal import warning_line
from core.fleet.models import ProgramStatus
from core.fleet.programs import ProgramState

__all__ = ["Liveness", "Program", "Runner", "supervise"]

SHORT_LIFE_SECONDS = 30.0  # a program that ends sooner than this did not get going
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
TOLD_SHORT_LIVES = 6  # after so many in a row its last words are shown, once
LIVENESS_VARIABLE = "TUNEWRIGHT_LIVENESS_FILE"
LAST_WORDS_SECONDS = 2.0  # from SIGABRT, on which Python writes where each thread is, to SIGKILL
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Liveness:
    """How long a program may give no sign of life: a minute; five from its start, on a cold disk and a busy machine.

    Checks are counted, not time, which also passes while the supervisor itself is stopped.
    """

    check_seconds: float = 5.0
    silent_checks: int = 12
    starting_checks: int = 60


@dataclass(frozen=True)
class Program:
    """Something to keep running.

    With `once`, its end is no failure and it is not started again; after ending with `final_code` it is down until
    `Runner.start_again`. With `liveness` it touches the file named by TUNEWRIGHT_LIVENESS_FILE every second, and is
    killed when it no longer does. Another process may touch it in its place.
    """

    name: str  # of its log file, and what people read
    arguments: tuple[str, ...]
    grace_seconds: float  # from SIGTERM to SIGKILL
    once: bool = False
    final_code: int | None = None
    liveness: Liveness | None = None


class Runner:
    """One program, kept running until `stop`. `on_change` is called whenever `state` has changed."""

    def __init__(
        self,
        program: Program,
        environment: Mapping[str, str],
        log_directory: Path,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.program = program
        self.log_path = log_directory / f"{program.name}.log"
        self.state = ProgramState(program.name, ProgramStatus.STARTING)
        self.alive_path = log_directory / f"{program.name}.alive"
        self._environment = {**environment, LIVENESS_VARIABLE: str(self.alive_path)}
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._hung = False
        self._stopping = asyncio.Event()
        self._wanted = asyncio.Event()  # set by whoever ends a rest: `start_again` or `stop`

    @property
    def process_id(self) -> int | None:
        """The process that runs now; None between two of them."""
        return self._process.pid if self._process else None

    async def keep(self, reaper: Reaper) -> None:
        """Start the program, and again with growing delays when it dies, until `stop`; a `once` program only once."""
        short_lives = 0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            code = await self._run(reaper)
            if self._stopping.is_set():
                self._change(ProgramStatus.STOPPED)
                return
            if code == self.program.final_code:
                await self._rest()
                continue
            if self.program.once:
                if code != 0:
                    warning_line(self.program.name, f"ended with {_ending(code)}; see {self.log_path}")
                self._change(ProgramStatus.STOPPED if code == 0 else ProgramStatus.FAILED, _ending(code))
                return
            short_lives = short_lives + 1 if time.monotonic() - started_at < SHORT_LIFE_SECONDS else 1
            await self._pause(short_lives, "a hang" if self._hung else _ending(code))

    def start_again(self) -> None:
        """Bring a program back that has ended with its `final_code`; any other is not touched."""
        if self.state.status is ProgramStatus.DRAINED:
            self._wanted.set()

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ask the program to end; after its grace, or when `hurry` is set, end it and all that it started."""
        self._stopping.set()
        self._wanted.set()
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

    def last_words(self) -> str:
        """The end of the program's log."""
        return f"The end of {self.log_path}:\n{read_tail(self.log_path)}"

    async def _rest(self) -> None:
        """Stay down until the program is asked to start again, or all of it stops."""
        warning_line(self.program.name, "has ended as it was asked to and stays down until it is started again")
        self._wanted.clear()
        if not self._stopping.is_set():
            self._change(ProgramStatus.DRAINED)
            await self._wanted.wait()
        if self._stopping.is_set():
            self._change(ProgramStatus.STOPPED)

    async def _pause(self, short_lives: int, ending: str) -> None:
        """Wait before the next start, longer each time while the program does not get going."""
        delay = min(FIRST_DELAY_SECONDS * 2.0 ** min(short_lives - 1, 30), LONGEST_DELAY_SECONDS)
        self._change(ProgramStatus.RESTARTING, ending)
        warning_line(self.program.name, f"ended with {ending}; starting it again in {delay:g} s")
        if short_lives == TOLD_SHORT_LIVES:
            warning_line(
                self.program.name,
                f"ended {short_lives} times right after its start. The rest of the service goes on, and it is tried "
                f"again at least every {LONGEST_DELAY_SECONDS:g} s. {self.last_words()}",
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run(self, reaper: Reaper) -> int:
        self.alive_path.unlink(missing_ok=True)
        self._hung = False
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
        reaper.started(process.pid, self.program.grace_seconds)
        self._change(ProgramStatus.RUNNING, self.state.last_ending)
        if self._stopping.is_set():  # while it was being started
            _signal(process.pid, signal.SIGKILL)
        warn = partial(warning_line, self.program.name)
        beside = [asyncio.create_task(repeat_warnings(self.log_path, position, warn))]
        if self.program.liveness is not None:
            beside.append(asyncio.create_task(self._kill_when_silent(process.pid, self.program.liveness)))
        try:
            return await process.wait()
        finally:
            for task in beside:
                task.cancel()
            _kill_group(process.pid)  # what a dead worker leaves would hold its device
            reaper.ended(process.pid)
            self._process = None

    async def _kill_when_silent(self, process_id: int, liveness: Liveness) -> None:
        """End the process once it gives no sign of life: first so that it writes where it hangs, then for good."""
        last, silent = None, 0
        while silent < (liveness.starting_checks if last is None else liveness.silent_checks):
            await asyncio.sleep(liveness.check_seconds)
            beat = _modified_at(self.alive_path)
            last, silent = (beat, 0) if beat != last else (last, silent + 1)
        seconds = silent * liveness.check_seconds
        warning_line(self.program.name, f"has given no sign of life for {seconds:.0f} s and is killed")
        self._hung = True
        _signal(process_id, signal.SIGABRT)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        _kill_group(process_id)

    def _change(self, status: ProgramStatus, ending: str | None = None) -> None:
        restarts = self.state.restarts + (status is ProgramStatus.RESTARTING)
        self.state = ProgramState(self.program.name, status, self.process_id, restarts, ending)
        self._on_change()


async def supervise(stages: Sequence[Sequence[Runner]], meanwhile: Coroutine[None, None, None] | None = None) -> None:
    """Keep every runner running until SIGINT or SIGTERM, then stop them stage by stage, those of a stage together.

    `meanwhile` is what to do beside it, such as waiting for an answer and saying where it came from. A second signal
    stops without grace. Raises what `meanwhile` raises, after everything has stopped.
    """
    stopping, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (hurry if stopping.is_set() else stopping).set())
    reaper = await Reaper.start()
    kept = asyncio.gather(*(runner.keep(reaper) for stage in reversed(stages) for runner in stage))
    stopped = asyncio.create_task(stopping.wait())
    watched: set[asyncio.Future[Any]] = {kept, stopped}
    beside = asyncio.create_task(meanwhile) if meanwhile else None
    try:
        if beside is not None:
            await asyncio.wait({*watched, beside}, return_when=asyncio.FIRST_COMPLETED)
            if beside.done():
                beside.result()
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        if beside is not None:
            beside.cancel()
        for stage in stages:
            await asyncio.gather(*(runner.stop(hurry) for runner in stage))
        await reaper.close()
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
    with suppress(ProcessLookupError):
        os.killpg(process_id, signal.SIGKILL)


def _signal(process_id: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process_id, number)


def _ending(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def _modified_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
