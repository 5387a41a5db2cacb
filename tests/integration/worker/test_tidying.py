"""What killed processes left behind goes when a worker starts, and nothing else does."""

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from core.datasets import service as files
from core.datasets.models import FilePurpose, StoredFile
from core.db.base import utc_now
from core.db.leases import Holder
from core.fleet import queries as fleet_queries
from core.fleet import service as fleet
from core.fleet.service import DeviceReport, WorkerReport
from core.jobs import lease as leases
from core.jobs import progress
from core.retention.files import delete_file
from core.scratch import remove_leftovers
from migrations.schema import metadata
from planner.options import RequestedConfig
from tests.integration.worker.installation import CPU, Installation, installation
from worker.tidying import tidy_runs, tidy_store

LONG_AGO = (utc_now() - timedelta(days=2)).timestamp()
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(20)
]


@pytest.fixture
def here(tmp_path: Path, models_dir: Path, valkey_url: str) -> Iterator[Installation]:
    """An installation of the test's own."""
    with installation(tmp_path, models_dir, valkey_url) as found:
        yield found


def test_only_what_nobody_recorded_leaves_the_store(here: Installation, tmp_path: Path) -> None:
    runtime = here.runtime
    here.submit(ROWS, RequestedConfig(n_epochs=1))
    claimed = runtime.database.run(
        lambda session: leases.claim_next(session, runtime.settings, Holder("w", ["cpu"]), CPU.device_class)
    )
    assert claimed is not None
    lease, job = claimed
    prefix = lease.storage_prefix(job.organization_id)
    stored = runtime.store.put(f"{prefix}/step-4.tar", [b"recorded"])
    runtime.database.run(lambda session: progress.record_checkpoint(session, lease, 4, stored, {"train_loss": 1.0}))
    lost = runtime.store.put(f"{prefix}/step-8.tar", [b"stored by a worker that died then"]).key
    root = tmp_path / "artifacts"
    deleted, needed = (_upload(here, job.organization_id) for _ in range(2))
    # As where the store is away when a file is deleted: its row is gone, its bytes are not.
    runtime.database.run(lambda session: delete_file(session, job.organization_id, deleted.id))
    torn = root / ".incoming" / "torn"
    torn.write_bytes(b"the upload of an API that was killed")
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    fresh = runtime.store.put(f"{prefix}/step-12.tar", [b"about to be recorded"]).key
    arriving = root / ".incoming" / "arriving"
    arriving.write_bytes(b"an upload")
    kept = {path for path in root.rglob("*") if path.is_file()} - {torn, root / lost, root / deleted.storage_key}

    tidy_store(runtime)

    assert {path for path in root.rglob("*") if path.is_file()} == kept
    assert runtime.store.exists(stored.key)
    assert runtime.store.exists(fresh)
    assert runtime.store.exists(needed.storage_key)


def _upload(here: Installation, organization_id: str) -> StoredFile:
    upload = files.store_upload(here.runtime, organization_id, "rows.jsonl", [b'{"text": "one"}'])
    return here.runtime.database.run(
        lambda session: files.create_file(session, organization_id, upload, FilePurpose.FINE_TUNE)
    )


def test_old_scratch_copies_leave_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("tunewright-scratch-fetched", "tunewright-scratch-in-use", "tunewright-of-a-person")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "joined.parquet").touch()
    (tmp_path / "tunewright-scratch-unpacked.parquet").touch()
    for path in tmp_path.glob("*"):
        if path.name != "tunewright-scratch-in-use":
            os.utime(path, (LONG_AGO, LONG_AGO))
    assert remove_leftovers() == 2
    assert {path.name for path in tmp_path.glob("*")} == set(names[1:])


def test_workers_that_are_long_gone_are_forgotten(here: Installation) -> None:
    database = here.runtime.database

    def names() -> set[str]:
        with database.read() as session:
            return {row.id for row in fleet_queries.reported(session, utc_now() - timedelta(days=999), 100)}

    for name, days in (("gone", 31), ("away", 29), ("here", 0)):
        with database.transaction() as session:
            fleet.report(session, WorkerReport(name, "machine", 1, [DeviceReport(CPU)], {}))
            session.flush()
            fleet.get_worker(session, name).heartbeat_at -= timedelta(days=days)
    before = names()
    database.run(fleet.forget_workers)
    assert before - names() == {"gone"}


def test_run_directories_of_leases_that_are_over_go_with_their_data(here: Installation) -> None:
    runtime = here.runtime
    here.submit(ROWS, RequestedConfig(n_epochs=1))
    claimed = runtime.database.run(
        lambda session: leases.claim_next(session, runtime.settings, Holder("w", ["cpu"]), CPU.device_class)
    )
    assert claimed is not None
    lease, _ = claimed
    current = runtime.settings.runs_dir / f"{lease.job_id}-{lease.token}"
    stale = [runtime.settings.runs_dir / f"{lease.job_id}-lease_1", runtime.settings.runs_dir / "ftjob-1-lease_1"]
    for directory in (current, *stale):
        (directory / "data").mkdir(parents=True)
    tidy_runs(runtime)
    assert list(runtime.settings.runs_dir.iterdir()) == [current]
    runtime.database.run(lambda session: leases.release(session, lease, "The worker shuts down"))
    tidy_runs(runtime)
    assert list(runtime.settings.runs_dir.iterdir()) == []


def test_every_table_that_names_objects_is_asked_before_one_is_removed() -> None:
    """A new one belongs into `core.jobs.queries.recorded_keys`."""
    naming = {name for name, table in metadata.tables.items() if "storage_key" in table.c}
    assert naming == {"checkpoints", "artifacts", "files"}
