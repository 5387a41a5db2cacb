"""A worker of one release on a database of another is refused, not broken."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from core.runtime import Runtime
from tests.integration.worker.installation import CPU, installation
from worker.maintenance import sweep
from worker.training_worker import TrainingWorker


@pytest.fixture
def told_to_end() -> Iterator[list[int]]:
    """The signals with which this process was told to end, which it survives."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)


def migrate_further(runtime: Runtime) -> None:
    """As a newer release would."""
    with runtime.database.transaction() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))


def test_a_worker_whose_database_was_migrated_claims_nothing_and_leaves(
    tmp_path: Path, models_dir: Path, valkey_url: str, told_to_end: list[int]
) -> None:
    with installation(tmp_path, models_dir, valkey_url) as here:
        worker = TrainingWorker(here.runtime, [CPU])
        worker._warm.set()
        migrate_further(here.runtime)
        worker.work()
        assert told_to_end == [signal.SIGTERM]
        sweep(here.runtime)
        assert told_to_end == [signal.SIGTERM] * 2


def test_a_worker_does_not_start_on_the_schema_of_another_release(
    tmp_path: Path, models_dir: Path, valkey_url: str
) -> None:
    with installation(tmp_path, models_dir, valkey_url) as here:
        migrate_further(here.runtime)
        settings = here.runtime.settings
        environment = {
            **os.environ,
            "TUNEWRIGHT_DATA_DIR": str(settings.data_dir),
            "TUNEWRIGHT_DATABASE_URL": settings.resolved_database_url,
            "TUNEWRIGHT_REDIS_URL": valkey_url,
        }
        command = [sys.executable, "-m", "worker", "--maintenance"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("the database's schema is of a newer release than this process.\n")
