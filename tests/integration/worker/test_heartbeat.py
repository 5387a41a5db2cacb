"""A worker's heartbeat outlives whatever one report runs into."""

from pathlib import Path

import psutil
import pytest

from core.fleet import service as fleet
from tests.integration.worker.installation import CPU, installation
from tests.waiting import wait_for
from worker.training_worker import TrainingWorker


def test_a_report_that_fails_is_not_the_last(
    tmp_path: Path, models_dir: Path, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = psutil.virtual_memory, iter([OSError("the driver does not answer"), psutil.Error()])

    def fails_twice() -> object:
        for failure in failures:
            raise failure
        return read()

    monkeypatch.setattr(psutil, "virtual_memory", fails_twice)
    with installation(tmp_path, models_dir, valkey_url) as here:
        worker = TrainingWorker(here.runtime, [CPU])
        worker._heartbeat.start()

        def is_known() -> bool:
            with here.runtime.database.read() as session:
                return [row.id for row in fleet.workers(session, here.runtime.settings)] == [worker.id]

        wait_for(is_known, what="the third report")
        worker.stop()
    assert list(failures) == []
