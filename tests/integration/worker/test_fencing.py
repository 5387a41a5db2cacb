"""A worker that was taken for dead, and was not: it cannot write over what its successor stored."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from core.db.base import utc_now
from core.db.leases import Holder
from core.errors import StaleLeaseError
from core.jobs import lease as leases
from core.jobs import progress, queries
from core.jobs.lease import Lease
from core.jobs.models import Job
from planner.options import RequestedConfig
from tests.integration.worker.installation import CPU, Installation, installation
from worker import prepare, publish
from worker.protocol import ResultReport

STEP = 4
RESULT = ResultReport(
    files={"adapter.zip": "adapter.zip", "metrics.csv": "metrics.csv"},
    processed_tokens=10,
    steps=STEP,
    published_step=STEP,
    train_seconds=1.0,
    step_seconds=None,
    checkpoints=0,
    checkpoint_seconds=0.0,
    final_train_loss=None,
    initial_valid_loss=None,
    final_valid_loss=None,
)


@pytest.fixture
def here(tmp_path: Path, models_dir: Path, valkey_url: str) -> Iterator[Installation]:
    """An installation of the test's own."""
    with installation(tmp_path, models_dir, valkey_url) as found:
        yield found


class Hand:
    """A worker's hand on a job: its lease, and a run directory with files that only it has."""

    def __init__(self, here: Installation, directory: Path, name: str) -> None:
        claimed = here.runtime.database.run(
            lambda session: leases.claim_next(session, here.runtime.settings, Holder(name, ["cpu"]), CPU.device_class)
        )
        assert claimed is not None
        self.lease, self.job = claimed
        self._here, self._directory = here, directory / name
        self._checkpoint = self._directory / f"step-{STEP}"
        self._checkpoint.mkdir(parents=True)
        for path in (self._checkpoint / "state.json", *map(self._directory.joinpath, RESULT.files)):
            path.write_text(f"written by {name}")

    def keep_checkpoint(self) -> None:
        """Store the checkpoint and record it."""
        stored = prepare.store_checkpoint(self._here.runtime, self.lease, self.job, self._checkpoint)
        assert stored is not None
        self._here.runtime.database.run(
            lambda session: progress.record_checkpoint(session, self.lease, STEP, stored, {"train_loss": 1.0})
        )

    def succeed(self) -> None:
        """Publish and end the job."""
        outcome = publish.publish(self._here.runtime, self.lease, self.job, self._directory, RESULT)
        self._here.runtime.database.run(lambda session: progress.succeed(session, self.lease, outcome))


def lose(here: Installation, lease: Lease) -> None:
    """Let the lease run out and the sweep find it."""

    def work(session: Session) -> None:
        session.get_one(Job, lease.job_id).lease_expires_at = utc_now() - timedelta(hours=1)
        leases.reclaim_expired(session, here.runtime.settings)

    here.runtime.database.run(work)


def test_a_worker_taken_for_dead_cannot_overwrite_its_successors_files(here: Installation, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(20)
    ]
    job_id = here.submit(rows, replace(RequestedConfig(), n_epochs=1))
    frozen = Hand(here, tmp_path, "frozen")
    lose(here, frozen.lease)
    successor = Hand(here, tmp_path, "successor")
    successor.keep_checkpoint()
    with pytest.raises(StaleLeaseError):
        frozen.keep_checkpoint()
    successor.succeed()
    with pytest.raises(StaleLeaseError):
        frozen.succeed()

    with here.runtime.database.read() as session:
        recorded = [*queries.stored_checkpoints(session, job_id), *queries.artifacts(session, job_id)]
    assert len(recorded) == 3
    for row in recorded:
        assert row.storage_key is not None
        with here.runtime.store.open(row.storage_key) as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == row.sha256
