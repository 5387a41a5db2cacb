"""A limited child gives back a value or says which limit it met, and never outlives whoever started it."""

import multiprocessing
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.errors import InvalidDatasetError
from core.limited import ChildDiedError, Limit, LimitedChild, LimitExceededError, Limits, run_limited
from tests.unit.limited import jobs
from tests.waiting import wait_for


def is_alive(process_id: int) -> bool:
    status = Path(f"/proc/{process_id}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_value_comes_back_whatever_the_function_prints() -> None:
    assert run_limited(jobs.double, 21, limits=jobs.LIMITS) == 42


def test_a_child_can_be_called_again_and_yields_as_it_goes() -> None:
    with LimitedChild(jobs.LIMITS) as child:
        assert list(child.values(jobs.squares, 4)) == [0, 1, 4, 9]
        with pytest.raises(InvalidDatasetError, match=r"Row 7: it is empty\. Fill it\.") as caught:
            list(child.values(jobs.broken_row))
        assert (caught.value.code, caught.value.param) == ("empty_row", "messages")
        assert list(child.values(jobs.double, 4)) == [8]
        process_id = child.process_id
    assert not is_alive(process_id)


@pytest.mark.parametrize(
    ("function", "limit"),
    [(jobs.busy, Limit.CPU_SECONDS), (jobs.bomb, Limit.MEMORY_BYTES), (jobs.big_reply, Limit.REPLY_BYTES)],
)
def test_what_needs_too_much_is_ended(function: object, limit: Limit) -> None:
    child = LimitedChild(jobs.LIMITS)
    with pytest.raises(LimitExceededError) as caught:
        list(child.values(function))  # type: ignore[arg-type]
    assert (caught.value.limit, caught.value.allowed) == (limit, getattr(jobs.LIMITS, limit))
    assert not child.is_usable
    assert not is_alive(child.process_id)


def test_what_waits_too_long_is_ended() -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=0.3, memory_bytes=64 * 1024**2)
    with pytest.raises(LimitExceededError, match=r"took longer than 0\.3 s"):
        run_limited(jobs.sleep, limits=limits)


def test_a_fault_of_ours_is_told_apart() -> None:
    with pytest.raises(ChildDiedError, match="exit code 1"):
        run_limited(jobs.bug, limits=jobs.LIMITS)


def test_no_secret_is_handed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_DATABASE_URL", "postgresql://u:secret@host/db")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    names = set(run_limited(jobs.variables, limits=jobs.LIMITS))
    assert names <= {"PATH", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX"} | {
        "PYTHONPATH"
    }


def test_a_child_stays_when_the_thread_that_asked_for_it_ends() -> None:
    made: list[LimitedChild] = []
    thread = threading.Thread(target=lambda: made.append(LimitedChild(jobs.LIMITS)))
    thread.start()
    thread.join()
    with made[0] as child:
        assert list(child.values(jobs.double, 3)) == [6]


def test_a_busy_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    report = tmp_path / "child"
    command = f"from tests.unit.limited import jobs; jobs.leave_busy({str(report)!r})"
    parent = subprocess.Popen([sys.executable, "-c", command], cwd=Path(__file__).parents[3])
    try:
        child_id = int(wait_for(lambda: report.exists() and report.read_text(), what="the child to start"))
        assert is_alive(child_id)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not is_alive(child_id), what="the child to end")


def fork_of_a_parent() -> None:
    sys.exit(run_limited(jobs.double, 20, limits=jobs.LIMITS))


def test_a_forked_process_starts_children_of_its_own() -> None:
    assert run_limited(jobs.double, 1, limits=jobs.LIMITS) == 2  # the thread that starts children is there
    process = multiprocessing.get_context("fork").Process(target=fork_of_a_parent)
    process.start()
    process.join()
    assert process.exitcode == 40
