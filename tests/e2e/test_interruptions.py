"""What must not lose a job: its owner, a killed trainer, a killed worker, a drained worker."""

import hashlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from sqlalchemy import make_url, select
from sqlalchemy.exc import OperationalError

from core.artifacts.local import LocalStore
from core.fleet.service import DRAINED_EXIT_CODE
from core.hang_guard import HUNG_EXIT_CODE
from core.jobs import queries
from core.jobs.models import Job
from core.runtime import open_runtime
from core.settings import Settings
from tests.e2e.chaos import trainers
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.held_requests import HeldRequests
from tests.waiting import PATIENCE_SECONDS, wait_for
from worker.tidying import tidy_store

HANG_SECONDS = 8  # of 180, so that the end comes soon; above what a report takes on a busy machine
LONG = {"n_epochs": 80, "batch_size": 8}  # 300 steps or so


def _start_training(service: Service, steps: int = 5) -> str:
    job = service.create_job(chat_rows(), hyperparameters=LONG, adapter={"method": "lora"})
    _wait_for_step(service, job.id, steps)
    return job.id


def _wait_for_step(service: Service, job_id: str, step: int) -> None:
    def reached() -> bool:
        events = service.client.fine_tuning.jobs.list_events(job_id, limit=5).data
        return any(isinstance(event.data, dict) and event.data["step"] >= step for event in events)

    wait_for(reached, what=f"step {step}", context=service.logs)


def _steps(service: Service, job_id: str) -> list[int]:
    events = list(service.client.fine_tuning.jobs.list_events(job_id, limit=100))
    return [event.data["step"] for event in reversed(events) if event.data and event.data.get("valid_loss") is None]


def test_cancel_charges_what_was_used_and_frees_the_worker(service: Service) -> None:
    job_id = _start_training(service)
    service.client.fine_tuning.jobs.cancel(job_id)
    service.wait(job_id, "cancelled")
    with service.http as http:
        wire = http.get(f"/fine_tuning/jobs/{job_id}").json()
        assert http.get("/credits").json()["held"] == 0
    assert 0 <= wire["charged"] <= wire["quote"]["credits"]
    wait_for(lambda: not trainers(service), what="the trainer to be gone")
    follower = service.create_job(chat_rows())
    service.wait(follower.id, "succeeded")


def test_a_cancelled_jobs_newest_checkpoint_can_be_downloaded(service: Service) -> None:
    job_id = _start_training(service, steps=10)
    service.client.fine_tuning.jobs.cancel(job_id)
    service.wait(job_id, "cancelled")
    newest = service.client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    with service.http as http:
        path = f"/fine_tuning/jobs/{job_id}/checkpoints/{newest.id}/content"
        content = http.get(path, follow_redirects=True).raise_for_status().content
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"weights.safetensors", "optimizer.pt", "state.json", "manifest.json"} <= names


def test_a_drained_worker_puts_its_job_back_and_ends(service: Service) -> None:
    job_id = _start_training(service, steps=10)
    waiting = service.create_job(chat_rows()).id
    with service.http as http:
        place = http.get(f"/fine_tuning/jobs/{waiting}").json()
    assert place["queue_position"] == 1
    assert place["estimated_start"] > 0
    worker = service.processes.pop("worker")
    command = [sys.executable, "-m", "cli", "worker", "drain"]
    drained = subprocess.run(command, env=service.environment, capture_output=True, text=True, check=False)
    assert drained.returncode == 0, drained.stderr
    assert "Drained" in drained.stderr
    assert worker.wait(timeout=PATIENCE_SECONDS) == DRAINED_EXIT_CODE
    service.start_worker()
    service.wait(job_id, "succeeded")
    steps = _steps(service, job_id)
    assert steps == list(range(1, len(steps) + 1))
    service.wait(waiting, "succeeded")


def test_pause_and_resume_go_on_where_it_stopped(service: Service) -> None:
    job_id = _start_training(service)
    service.client.fine_tuning.jobs.pause(job_id)
    service.wait(job_id, "paused")
    reached = max(_steps(service, job_id))
    service.client.fine_tuning.jobs.resume(job_id)
    _wait_for_step(service, job_id, reached + 1)
    service.client.fine_tuning.jobs.cancel(job_id)
    service.wait(job_id, "cancelled")
    steps = _steps(service, job_id)
    assert steps == list(range(1, len(steps) + 1))


def test_a_killed_fork_server_and_a_killed_trainer_are_started_again_from_the_checkpoint(service: Service) -> None:
    job_id = _start_training(service, steps=10)
    (trainer,) = trainers(service)
    environment = trainer.environ()
    assert "PATH" in environment
    assert [name for name in environment if name.startswith("TUNEWRIGHT_")] == [], "passwords are among them"
    fork_server = trainer.parent()
    assert fork_server is not None
    assert fork_server.pid != service.processes["worker"].pid
    fork_server.kill()
    _wait_for_step(service, job_id, 30)
    for trainer in trainers(service):
        trainer.kill()
    service.wait(job_id, "succeeded")
    steps = _steps(service, job_id)
    assert steps == list(range(1, len(steps) + 1))
    events = [event.message for event in service.client.fine_tuning.jobs.list_events(job_id, limit=100)]
    assert sum("going on from the last checkpoint" in message for message in events) == 2, events
    assert any("signal 9" in message for message in events)


def _suspend_between_transactions(service: Service, family: Sequence[psutil.Process]) -> None:
    """SQLite has one writer: a process suspended within its transaction would hold up everyone."""
    path = make_url(service.environment["TUNEWRIGHT_DATABASE_URL"]).database
    assert path is not None
    while True:
        for process in family:
            process.suspend()
        with closing(sqlite3.connect(path, timeout=1)) as connection:
            try:
                connection.execute("begin immediate")
            except sqlite3.OperationalError:
                for process in family:
                    process.resume()
            else:
                return


def test_a_suspended_worker_that_wakes_after_its_successor_published_changes_nothing(service: Service) -> None:
    job_id = _start_training(service)
    frozen = psutil.Process(service.processes["worker"].pid)
    family = [frozen, *frozen.children(recursive=True)]
    _suspend_between_transactions(service, family)
    service.start_worker("successor")
    service.wait(job_id, "succeeded")
    for process in family:
        process.resume()
    log = service.directory / "worker.log"
    wait_for(lambda: "lease_lost" in log.read_text(), what="the news to arrive", context=service.logs)
    wait_for(lambda: not trainers(service), what="its trainer to be gone")
    service.stop("successor", signal.SIGTERM)
    with service.database.read() as session:
        published = queries.artifacts(session, job_id)
    with service.http as http:
        for artifact in published:
            path = f"/fine_tuning/jobs/{job_id}/artifacts/{artifact.name}"
            content = http.get(path, follow_redirects=True).raise_for_status().content
            assert hashlib.sha256(content).hexdigest() == artifact.sha256
    service.wait(service.create_job(chat_rows()).id, "succeeded")  # by the one that was suspended


def test_a_worker_that_hangs_ends_itself_and_its_job_goes_on_elsewhere(service: Service) -> None:
    """Its heartbeat waits for a database that does not answer, as one behind a broken network does not."""
    service.stop("worker")
    service.environment["TUNEWRIGHT_HANG_SECONDS"] = str(HANG_SECONDS)
    try:
        doomed = service.start_worker("doomed")
    finally:
        del service.environment["TUNEWRIGHT_HANG_SECONDS"]
    job_id = _start_training(service)
    family = psutil.Process(doomed.pid).children(recursive=True)
    with closing(sqlite3.connect(make_url(service.environment["TUNEWRIGHT_DATABASE_URL"]).database or "")) as blocking:
        blocking.isolation_level = None
        blocking.execute("begin immediate")
        assert doomed.wait(PATIENCE_SECONDS) == HUNG_EXIT_CODE
        blocking.execute("rollback")
    del service.processes["doomed"]
    log = (service.directory / "doomed.log").read_text()
    assert '"loop": "heartbeat"' in log
    assert "in _beat_once" in log
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert alive == []
    service.start_worker("worker")
    service.wait(job_id, "succeeded")
    steps = _steps(service, job_id)
    assert steps == list(range(1, len(steps) + 1))


def test_an_api_that_is_killed_in_the_middle_of_an_upload_keeps_nothing_of_it(service: Service) -> None:
    incoming = service.directory / "data" / "artifacts" / ".incoming"

    def begin() -> Iterator[bytes]:
        yield b'--edge\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + b"x" * 2**20
        wait_for(lambda: [*incoming.glob("*")], what="its first bytes to be stored", context=service.logs)
        service.stop("api", signal.SIGKILL)
        yield b"x" * 2**20

    before = {file.id for file in service.client.files.list()}
    try:
        with service.http as http, pytest.raises(httpx.TransportError):
            http.post("/files", content=begin(), headers={"content-type": "multipart/form-data; boundary=edge"})
    finally:
        service.start_api()
    assert {file.id for file in service.client.files.list()} == before
    (torn,) = incoming.glob("*")
    os.utime(torn, (0, 0))
    assert LocalStore(incoming.parent).discard_incomplete(datetime.now(UTC) - timedelta(days=1)) == 1
    assert not torn.exists()
    service.wait(service.create_job(chat_rows()).id, "succeeded")


def _suspend_apart_from_the_job(service: Service, job_id: str, family: Sequence[psutil.Process]) -> None:
    """While none of its transactions holds the job's row: PostgreSQL would keep it from others for five minutes."""
    locking = select(Job.id).where(Job.id == job_id).with_for_update(nowait=True)
    while True:
        for process in family:
            process.suspend()
        try:
            with service.database.transaction() as session:
                session.execute(locking)
        except OperationalError:
            for process in family:
                process.resume()
        else:
            return


def test_others_take_over_from_workers_that_die_or_hang_while_they_fetch_or_publish(
    tmp_path: Path,
    models_dir: Path,
    valkey_url: str,
    postgres_url: str,
    s3_endpoint: str,
    bucket: Any,
    held_requests: HeldRequests,
) -> None:
    """As in production, on PostgreSQL and S3: three workers are killed in the middle of a job, and one is drained. The
    fourth hangs while it publishes, past its lease; when it wakes, its result is not taken, and it finishes the job.
    """
    overrides = {"STORE_URL": f"s3://{bucket.name}/tunewright", "S3_ENDPOINT_URL": s3_endpoint}
    overrides["S3_PUBLIC_ENDPOINT_URL"] = s3_endpoint
    with running_service(tmp_path, models_dir, valkey_url, database_url=postgres_url, overrides=overrides) as service:
        job_id = service.create_job(chat_rows(), hyperparameters=LONG, adapter={"method": "lora"}).id
        service.client.fine_tuning.jobs.pause(job_id)  # until nobody but a worker reads its file
        service.wait(job_id, "paused")
        with held_requests.at(r"GET .*/files/", context=service.logs) as arrived:
            service.client.fine_tuning.jobs.resume(job_id)
            arrived()
            service.stop("worker", signal.SIGKILL)
        service.launch_worker("training")
        _wait_for_step(service, job_id, 30)
        service.stop("training", signal.SIGTERM)
        with held_requests.at(r"GET .*\.tar$", context=service.logs) as arrived:
            service.launch_worker("resuming")
            arrived()
            service.stop("resuming", signal.SIGKILL)
        with held_requests.at(r"PUT .*/artifacts/metrics\.csv$", context=service.logs) as arrived:
            hanging = psutil.Process(service.launch_worker("hanging").pid)
            arrived()
            _suspend_apart_from_the_job(service, job_id, family := [hanging, *hanging.children(recursive=True)])
        with held_requests.at(r"PUT .*/artifacts/metrics\.csv$", context=service.logs) as arrived:
            service.launch_worker("publishing")
            arrived()
            stored = {found.key for found in bucket.objects.all()}
            service.stop("publishing", signal.SIGKILL)
        for process in family:
            process.resume()
        log = service.directory / "hanging.log"
        wait_for(lambda: "lease_lost" in log.read_text(), what="the news to arrive", context=service.logs)
        service.wait(job_id, "succeeded")
        steps = _steps(service, job_id)
        assert steps == list(range(1, len(steps) + 1))
        with service.http as http:
            assert http.get("/credits").json()["held"] == 0
            booked = [line["kind"] for line in http.get("/credits/transactions").json()["data"]]
            download = http.get(f"/fine_tuning/jobs/{job_id}/artifacts/adapter.zip", follow_redirects=False)
        assert booked.count("capture") == 1, booked
        assert download.status_code in (302, 307)
        content = httpx.get(download.headers["location"]).content
        _nothing_is_left_but_what_is_recorded(service, bucket, stored, job_id, hashlib.sha256(content).hexdigest())


def _nothing_is_left_but_what_is_recorded(
    service: Service, bucket: Any, stored: set[str], job_id: str, adapter_sha256: str
) -> None:
    """After the next day's tidying: of the adapter that a killed worker had stored, of its checkpoints, of anything."""
    with service.database.read() as session:
        artifacts = list(queries.artifacts(session, job_id))
        recorded = {one.storage_key for one in artifacts}
        recorded |= {one.storage_key for one in queries.stored_checkpoints(session, job_id)}
    assert [one.sha256 for one in artifacts if one.name == "adapter.zip"] == [adapter_sha256]
    prefix = "tunewright/"
    left = {key for key in stored if "/artifacts/" in key}
    assert len(left) > 1, "of the workers that were killed and that hung while they published"
    assert {key.removeprefix(prefix) for key in left} & recorded == set()
    for key in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket.name].keys.values():
        key.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=2)
    names = ("DATABASE_URL", "REDIS_URL", "STORE_URL", "S3_ENDPOINT_URL", "DATA_DIR")
    given: Any = {name.lower(): service.environment[f"TUNEWRIGHT_{name}"] for name in names}
    runtime = open_runtime(Settings(**given))
    tidy_store(runtime)
    runtime.close()
    of_jobs = {found.key.removeprefix(prefix) for found in bucket.objects.all() if f"/{job_id}/" in found.key}
    assert of_jobs == recorded
