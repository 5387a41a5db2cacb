"""One service holds one directory, and is found there only while it runs."""

import os
from pathlib import Path

import pytest

from cli.service_files import RunningService, announce, lock_directory, running_service
from core.errors import ConflictError


def test_a_service_is_found_while_it_runs(tmp_path: Path) -> None:
    assert running_service(tmp_path) is None
    service = RunningService("http://127.0.0.1:8040", os.getpid())
    with lock_directory(tmp_path):
        assert running_service(tmp_path) is None, "not announced yet"
        announce(tmp_path, service)
        assert running_service(tmp_path) == service
    assert running_service(tmp_path) is None


def test_a_held_directory_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with lock_directory(tmp_path):
        announce(tmp_path, RunningService("http://127.0.0.1:8040", os.getpid()))
        with (
            pytest.raises(ConflictError, match=r"already at http://127\.0\.0\.1:8040 \(process \d+\).*--data DIR"),
            lock_directory(tmp_path),
        ):
            pass
        assert running_service(tmp_path) is not None, "the refused one left the other's word in place"


def test_what_a_killed_service_left_is_not_taken_for_its_successor(tmp_path: Path) -> None:
    gone = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(gone, 0)
    announce(tmp_path, RunningService("http://127.0.0.1:1", gone))
    assert running_service(tmp_path) is None
    with lock_directory(tmp_path):
        assert running_service(tmp_path) is None
