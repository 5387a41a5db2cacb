"""Rehearsals in a child process, as their parent sees them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from core.errors import InvalidModelError, ServiceUnavailableError
from planner.catalogue import find_model
from planner.memory.rehearsed import RehearsalQuestion
from planner.options import RequestedConfig
from planner.statistics import DatasetStatistics
from tests.waiting import wait_for
from worker import rehearsals

STATISTICS = DatasetStatistics(1000, 400_000, 200_000, (400,) * 100)


def large_question() -> RehearsalQuestion:
    """One whose answer takes long enough to be interrupted."""
    entry = find_model("llama-3.3-70b-instruct")
    assert entry is not None
    return RehearsalQuestion(entry.config, ("cpu", "cuda"), STATISTICS, RequestedConfig())


def test_a_process_that_stops_ends_its_rehearsals() -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(rehearsals.rehearsed_memory, large_question())
        wait_for(lambda: rehearsals._RUNNING, what="the child to start")
        rehearsals.end_all()
        with pytest.raises(ServiceUnavailableError, match="Another will take it up"):
            asked.result()
    assert not rehearsals._RUNNING
    assert not rehearsals._ENDED


def test_a_rehearsal_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsals, "LONGEST_SECONDS", 0.1)
    with pytest.raises(InvalidModelError, match=r"'llama' took longer than 0 s"):
        rehearsals.rehearsed_memory(large_question())
    assert not rehearsals._RUNNING


def test_a_child_that_dies_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsals, "PROGRAM", "worker.no_such_program")
    with pytest.raises(InvalidModelError, match=r"ended with code 1: .*no_such_program"):
        rehearsals.rehearsed_memory(large_question())
