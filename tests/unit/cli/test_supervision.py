"""Programs are kept running, stopped in order, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cli.supervision import Liveness, Program, Runner, supervise
from core.fleet.models import ProgramStatus

SLEEPER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("bye", flush=True), sys.exit(0)))
print("up", flush=True)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def _runner(directory: Path, name: str, script: str, *, grace_seconds: float = 10.0, once: bool = False) -> Runner:
    program = Program(name, (sys.executable, "-c", script), grace_seconds=grace_seconds, once=once)
    return Runner(program, os.environ, directory)


async def _until(path: Path, text: str, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while not path.exists() or path.read_text().count(text) < count:
            await asyncio.sleep(0.01)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_stops_stage_after_stage(tmp_path: Path) -> None:
    slow = SLEEPER.replace("sys.exit(0)", "time.sleep(0.3), print(time.monotonic(), flush=True), sys.exit(0)")
    quick = SLEEPER.replace('"bye"', "time.monotonic()")
    first, second = _runner(tmp_path, "first", slow), _runner(tmp_path, "second", quick)

    async def interrupt_when_up() -> None:
        for runner in (first, second):
            await _until(runner.log_path, "up")
        _interrupt()

    asyncio.run(supervise([[first], [second]], interrupt_when_up()))
    ended_at = float(first.log_path.read_text().split()[-1])
    asked_at = float(second.log_path.read_text().split()[-1])
    assert ended_at < asked_at


def test_a_program_that_dies_is_started_again(tmp_path: Path) -> None:
    runner = _runner(tmp_path, "mortal", SLEEPER)

    async def kill_then_interrupt() -> None:
        await _until(runner.log_path, "up")
        assert runner.process_id is not None
        os.kill(runner.process_id, signal.SIGKILL)
        await _until(runner.log_path, "up", count=2)
        _interrupt()

    asyncio.run(supervise([[runner]], kill_then_interrupt()))
    assert runner.log_path.read_text().split() == ["up", "up", "bye"]


def test_a_program_that_never_gets_going_is_tried_again_while_the_rest_goes_on(tmp_path: Path) -> None:
    healthy = _runner(tmp_path, "healthy", SLEEPER)
    broken = _runner(tmp_path, "broken", "raise SystemExit('no licence')")

    async def interrupt_after_some_deaths() -> None:
        await _until(healthy.log_path, "up")
        await _until(broken.log_path, "no licence", count=3)
        while broken.state.restarts < 3:
            await asyncio.sleep(0.01)
        assert (healthy.state.status, healthy.state.restarts) == (ProgramStatus.RUNNING, 0)
        assert (broken.state.status, broken.state.last_ending) == (ProgramStatus.RESTARTING, "code 1")
        _interrupt()

    asyncio.run(supervise([[healthy, broken]], interrupt_after_some_deaths()))
    assert healthy.log_path.read_text().split() == ["up", "bye"]


def test_a_program_that_gives_no_sign_of_life_is_killed_and_started_again(tmp_path: Path) -> None:
    """It beats once and then holds the interpreter's lock, so that not even SIGTERM would be heard."""
    script = (
        "import os, pathlib; pathlib.Path(os.environ['TUNEWRIGHT_LIVENESS_FILE']).touch(); print('up', flush=True); "
        "import ctypes; ctypes.PyDLL(None).sleep(600)"
    )
    program = Program("frozen", (sys.executable, "-c", script), 5.0, liveness=Liveness(0.05, 10, 600))
    runner = Runner(program, {**os.environ, "PYTHONFAULTHANDLER": "1"}, tmp_path)

    async def interrupt_when_up_again() -> None:
        await _until(runner.log_path, "up", count=2)
        assert (runner.state.restarts, runner.state.last_ending) == (1, "a hang")
        _interrupt()

    asyncio.run(supervise([[runner]], interrupt_when_up_again()))
    assert "Current thread" in runner.log_path.read_text()  # it said where it hung


def test_a_program_that_runs_once_may_end(tmp_path: Path) -> None:
    healthy, once = _runner(tmp_path, "healthy", SLEEPER), _runner(tmp_path, "once", "print('done')", once=True)

    async def interrupt_when_done() -> None:
        await _until(once.log_path, "done")
        await _until(healthy.log_path, "up")
        _interrupt()

    asyncio.run(supervise([[healthy, once]], interrupt_when_done()))
    assert once.log_path.read_text() == "done\n"


def test_a_drained_program_stays_down_until_it_is_started_again(tmp_path: Path) -> None:
    script = 'print("up", flush=True); raise SystemExit(3)'
    program = Program("drained", (sys.executable, "-c", script), grace_seconds=10.0, final_code=3)
    changed = asyncio.Event()
    runner = Runner(program, os.environ, tmp_path, changed.set)

    async def until(status: ProgramStatus) -> None:
        async with asyncio.timeout(20):
            while runner.state.status is not status:
                changed.clear()
                await changed.wait()

    async def start_again_and_interrupt() -> None:
        await until(ProgramStatus.DRAINED)
        assert runner.process_id is None
        runner.start_again()
        await until(ProgramStatus.RUNNING)
        runner.start_again()  # of no effect while it runs
        await until(ProgramStatus.DRAINED)
        _interrupt()

    asyncio.run(supervise([[runner]], start_again_and_interrupt()))
    assert runner.log_path.read_text().count("up") == 2
    assert (runner.state.status, runner.state.restarts) == (ProgramStatus.STOPPED, 0)


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    runner = _runner(tmp_path, "stubborn", STUBBORN, grace_seconds=0.2)

    async def interrupt_when_up() -> None:
        await _until(runner.log_path, "up")
        _interrupt()

    asyncio.run(supervise([[runner]], interrupt_when_up()))
    assert runner.process_id is None


def test_a_second_interrupt_does_not_wait_for_the_grace(tmp_path: Path) -> None:
    runner = _runner(tmp_path, "stubborn", STUBBORN, grace_seconds=3600)

    async def interrupt_twice() -> None:
        await _until(runner.log_path, "up")
        asyncio.get_running_loop().call_later(0.3, _interrupt)
        _interrupt()

    asyncio.run(supervise([[runner]], interrupt_twice()))
    assert runner.process_id is None


def test_what_a_dead_program_leaves_behind_is_killed(tmp_path: Path) -> None:
    runner = _runner(tmp_path, "parent", WITH_CHILD)

    children: list[psutil.Process] = []

    async def interrupt_when_up() -> None:
        await _until(runner.log_path, "\n")
        children.append(psutil.Process(int(runner.log_path.read_text())))
        _interrupt()

    asyncio.run(supervise([[runner]], interrupt_when_up()))
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.parametrize(("program", "says_bye"), [(SLEEPER, True), (STUBBORN, False)], ids=["heeds", "ignores"])
def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path, program: str, says_bye: bool) -> None:
    """Also where the program does not heed SIGTERM, as one does not that holds the interpreter's lock."""
    script = (
        "import asyncio, os, sys; from pathlib import Path; from cli.supervision import Program, Runner, supervise; "
        f"program = Program('child', (sys.executable, '-c', {program!r}), grace_seconds=0.5); "
        f"asyncio.run(supervise([[Runner(program, os.environ, Path({str(tmp_path)!r}))]]))"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    log = tmp_path / "child.log"
    asyncio.run(_until(log, "up"))
    children = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.kill()
    supervisor.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (len(gone), alive) == (2, [])  # the program and the reaper
    assert ("bye" in log.read_text()) is says_bye
