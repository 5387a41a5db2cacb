"""Dry runs in a child process, as their parent sees them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import InvalidModelError, ServiceUnavailableError
from planner.catalogue import find_model
from planner.memory.dry_run import DryRunQuestion
from planner.options import RequestedConfig
from planner.statistics import DatasetStatistics
from tests.waiting import wait_for
from worker import dry_runs

STATISTICS = DatasetStatistics(1000, 400_000, 200_000, (400,) * 100)


def large_question() -> DryRunQuestion:
    """One whose answer takes long enough to be interrupted."""
    entry = find_model("llama-3.3-70b-instruct")
    assert entry is not None
    return DryRunQuestion(entry.config, ("cpu", "cuda"), STATISTICS, RequestedConfig())


def test_a_process_that_stops_ends_its_dry_runs() -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(dry_runs.dry_run_memory, large_question())
        wait_for(lambda: dry_runs._RUNNING, what="the child to start")
        dry_runs.end_all()
        with pytest.raises(ServiceUnavailableError, match="Another will take it up"):
            asked.result()
    assert not dry_runs._RUNNING
    assert not dry_runs._ENDED


def test_a_dry_run_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "LONGEST_SECONDS", 0.1)
    with pytest.raises(InvalidModelError, match=r"'llama' took longer than 0 s"):
        dry_runs.dry_run_memory(large_question())
    assert not dry_runs._RUNNING


def test_a_child_that_dies_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "PROGRAM", "worker.no_such_program")
    with pytest.raises(InvalidModelError, match=r"ended with code 1: .*no_such_program"):
        dry_runs.dry_run_memory(large_question())
