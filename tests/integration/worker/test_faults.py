"""Faults put into a running job, each with its outcome, its books and its sentence to the owner."""

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
from sqlalchemy.orm import Session

from core.artifacts.store import ArtifactStore, StoredObject
from core.db.base import utc_now
from core.errors import StoreError
from core.hub_access import HubAccess
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.registry.base_models import BaseModel, ModelRef
from core.settings import Settings
from planner.options import RequestedConfig
from planner.setup import Method
from tests.e2e.rows import chat_rows
from tests.integration.worker.installation import CPU, CREDITS, Installation, installation, trainers
from tests.waiting import wait_for
from worker.protocol import Phase, RunRequest
from worker.recorder import PHASES
from worker.supervisor import Supervisor

BATCH = 8
EPOCHS = 10  # of 4 steps, one tenth of the rows being held out
STEPS = 40


def lora(**changes: Any) -> RequestedConfig:
    """A run of 40 steps."""
    return replace(RequestedConfig(method=Method.LORA, n_epochs=EPOCHS, batch_size=BATCH), **changes)


class Meanwhile:
    """Something done by another thread while a job runs."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


def at_step(here: Installation, job_id: str, step: int, work: Callable[[int], None]) -> Meanwhile:
    """`work` on the trainer's process id as soon as the job has reported `step`."""

    def watch() -> None:
        wait_for(lambda: here.job(job_id).step >= step, what=f"step {step}")
        (trainer,) = trainers()
        work(trainer.pid)

    return Meanwhile(watch)


def test_a_trainer_that_hangs_is_ended_and_the_job_goes_on(here: Installation) -> None:
    job_id = here.submit(chat_rows(), lora())
    with at_step(here, job_id, 6, lambda pid: os.kill(pid, signal.SIGSTOP)):
        job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
    assert here.steps(job_id) == list(range(1, STEPS + 1))
    assert "said nothing for" in here.messages(job_id)


def test_a_fork_server_that_hangs_is_replaced_when_the_job_needs_another_trainer(
    tmp_path: Path, models_dir: Path, valkey_url: str, fork_server: None
) -> None:
    def stop_both(trainer: int) -> None:
        os.kill(psutil.Process(trainer).ppid(), signal.SIGSTOP)
        os.kill(trainer, signal.SIGSTOP)

    impatient = {"stall_seconds": 1.0, "stop_grace_seconds": 1.0, "hang_seconds": 3.0}
    with installation(tmp_path, models_dir, valkey_url, **impatient) as here:
        job_id = here.submit(chat_rows(), lora())
        with at_step(here, job_id, 6, stop_both):
            job = here.supervise(job_id)
        assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
        assert here.steps(job_id) == list(range(1, STEPS + 1))


def test_a_verifier_that_hangs_is_ended_and_the_proof_is_made_again(
    tmp_path: Path, models_dir: Path, valkey_url: str, fork_server: None
) -> None:
    def stop_verifier() -> None:
        wait_for(lambda: PHASES[Phase.VERIFYING] in here.messages(job_id), what="the proof")
        (trainer,) = (one for one in trainers() if one.children())
        trainer.children()[0].suspend()

    with installation(tmp_path, models_dir, valkey_url, stall_seconds=1.0, silence_seconds=15.0) as here:
        job_id = here.submit(chat_rows(), lora())
        with Meanwhile(stop_verifier):
            job = here.supervise(job_id)
        assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
        assert "said nothing for" in here.messages(job_id)
        assert here.steps(job_id) == list(range(1, STEPS + 1))


def test_a_trainer_that_dies_with_its_gpu_leaves_the_job_to_another_worker(
    tmp_path: Path, models_dir: Path, valkey_url: str, fork_server: None
) -> None:
    lost = replace(CPU, kind="cuda", name="NVIDIA A10", uuid="GPU-0")  # no driver lists it
    with installation(tmp_path, models_dir, valkey_url, stop_grace_seconds=1.0) as here:
        job_id = here.submit(chat_rows(), lora())
        with at_step(here, job_id, 6, lambda pid: os.kill(pid, signal.SIGKILL)):
            job = here.supervise(job_id, device=lost, change=lambda request: replace(request, device="cpu"))
        assert job.status is JobStatus.QUEUED, here.messages(job_id)
        said = "NVIDIA A10 cannot train now: the driver no longer lists it; `nvidia-smi` may say why. Moved back"
        assert said in here.messages(job_id)
        assert "died" not in here.messages(job_id), "it is no crash of the job's own"
        assert here.supervise(job_id).status is JobStatus.SUCCEEDED, here.messages(job_id)


def test_a_run_that_diverges_is_tried_once_more_with_smaller_steps_and_is_paid_for(here: Installation) -> None:
    def hot(request: RunRequest) -> RunRequest:
        """With a rate that nobody can ask for."""
        return replace(request, hyperparameters=replace(request.hyperparameters, learning_rate=1e38))

    job_id = here.submit(chat_rows(), lora(method=Method.FULL))
    job = here.supervise(job_id, change=hot)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "loss_diverged"
    assert here.messages(job_id).count("Going on from the last checkpoint at 0.25 times the rate") == 1
    assert "The device time it used is charged" in here.messages(job_id)
    assert job.charged_credits is not None
    assert 0 < job.charged_credits <= job.quote_credits


def test_ten_pauses_and_drains_of_one_job_are_no_crashes(here: Installation) -> None:
    settings, organization_id = here.runtime.settings, here.actor.organization_id
    assert settings.max_attempts == Settings().max_attempts, "the shipped default"
    job_id = here.submit(chat_rows(), lora())
    running: list[Supervisor] = []

    def pause(_: int) -> None:
        here.runtime.database.run(lambda session: jobs.pause_job(session, organization_id, job_id))

    for number in range(10):
        stop = pause if number % 2 else lambda _: running[-1].drain()
        with at_step(here, job_id, here.job(job_id).step + 1, stop):
            job = here.supervise(job_id, started=running.append)
        assert job.status is (JobStatus.PAUSED if number % 2 else JobStatus.QUEUED), here.messages(job_id)
        if job.status is JobStatus.PAUSED:
            here.runtime.database.run(lambda session: jobs.resume_job(session, settings, organization_id, job_id))
    job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
    assert here.steps(job_id) == list(range(1, STEPS + 1))


def stuck(_settings: Settings, _wanted: ModelRef, _access: HubAccess) -> tuple[BaseModel, Path]:
    """Weights that never arrive."""
    while True:
        signal.pause()


@pytest.mark.parametrize("verb", [jobs.cancel_job, jobs.pause_job])
def test_a_download_is_given_up_at_once(
    here: Installation, verb: Callable[[Session, str, str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.fetching.ensure_weights", stuck)
    organization_id = here.actor.organization_id
    job_id = here.submit(chat_rows(), lora())
    with here.runtime.database.transaction() as session:
        session.get_one(Job, job_id).plan.model_revision = "a" * 40  # as of a model of the hub

    def ask() -> None:
        wait_for(trainers, what="the child that fetches")
        here.runtime.database.run(lambda session: verb(session, organization_id, job_id))

    with Meanwhile(ask):
        job = here.supervise(job_id)
    assert job.status is (JobStatus.CANCELLED if verb is jobs.cancel_job else JobStatus.PAUSED)
    assert trainers() == []
    assert here.balance().held_credits == (0 if verb is jobs.cancel_job else job.quote_credits)
    assert job.used_seconds == 0, "fetching uses no device"


def test_publishing_is_given_up_and_leaves_nothing(here: Installation) -> None:
    organization_id = here.actor.organization_id
    job_id = here.submit(chat_rows(), lora())

    def lease_end() -> datetime | None:
        return here.job(job_id).lease_expires_at

    def cancel_meanwhile(key: str) -> bool:
        """The store is slow: it writes the first file while its owner cancels, and the worker hears of that."""
        if "/artifacts/" in key and here.job(job_id).status is JobStatus.RUNNING:
            here.runtime.database.run(lambda session: jobs.cancel_job(session, organization_id, job_id))
            for _ in range(2):  # the second renewal behind it has read it
                before = lease_end()
                wait_for(lambda before=before: lease_end() != before, what="the lease to be renewed")
        return False

    job = here.supervise(job_id, store=FailingStore(here.runtime.store, cancel_meanwhile))
    assert job.status is JobStatus.CANCELLED
    assert "Exporting" in here.messages(job_id)
    assert not [key for key in here.runtime.store.keys_before(utc_now() + timedelta(days=1)) if "/artifacts/" in key]


def test_memory_that_runs_out_halves_the_micro_batch_and_nothing_else(here: Installation) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "glow"}, {"role": "assistant", "content": "lamp " * 900 + str(n)}]}
        for n in range(18)
    ]
    requested = lora(n_epochs=2, batch_size=16, max_length=512)
    peaks = []
    for micro_batch in (2, 16):
        job_id = here.submit(rows, replace(requested, per_device_train_batch_size=micro_batch))
        measured = here.supervise(job_id).memory_measured
        assert measured is not None
        peaks.append(measured["device_bytes"])
    capped = sum(peaks) // 2
    job_id = here.submit(rows, replace(requested, per_device_train_batch_size=16))
    quote = here.job(job_id).quote_credits
    job = here.supervise(job_id, change=lambda request: replace(request, memory_limit_bytes=capped))
    assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
    setup = job.setup
    assert setup["per_device_train_batch_size"] < 16
    assert setup["per_device_train_batch_size"] * setup["gradient_accumulation_steps"] == 16
    assert "ran out of memory: micro-batch 16 -> 8, accumulation 1 -> 2" in here.messages(job_id)
    assert job.quote_credits == quote
    assert job.charged_credits is not None
    assert job.charged_credits <= quote


def test_memory_that_never_suffices_fails_and_costs_nothing(here: Installation) -> None:
    job_id = here.submit(chat_rows(), lora())
    job = here.supervise(job_id, change=lambda request: replace(request, memory_limit_bytes=50 * 2**20))
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    assert "in the phase loading" in job.error["message"]
    assert "Nothing is charged" in job.error["message"]
    assert here.balance().available_credits == CREDITS


class FailingStore:
    """A store that is away while `is_away` says so of the key that is written."""

    def __init__(self, store: ArtifactStore, is_away: Callable[[str], bool]) -> None:
        self._store, self._is_away = store, is_away

    def put(self, key: str, chunks: Iterable[bytes], *, max_bytes: int | None = None) -> StoredObject:
        if self._is_away(key):
            raise StoreError("The bucket cannot be reached: timed out.")
        return self._store.put(key, chunks, max_bytes=max_bytes)

    def put_file(self, key: str, path: Path) -> StoredObject:
        if self._is_away(key):
            raise StoreError("The bucket cannot be reached: timed out.")
        return self._store.put_file(key, path)

    def open(self, key: str) -> BinaryIO:
        return self._store.open(key)

    def materialize(self, key: str, directory: Path) -> Path:
        return self._store.materialize(key, directory)

    def delete(self, key: str) -> None:
        self._store.delete(key)

    def exists(self, key: str) -> bool:
        return self._store.exists(key)

    def download_url(self, key: str, filename: str, expires_seconds: int) -> str | None:
        return self._store.download_url(key, filename, expires_seconds)

    def keys_before(self, moment: datetime) -> Iterator[str]:
        return self._store.keys_before(moment)

    def discard_incomplete(self, moment: datetime) -> int:
        return self._store.discard_incomplete(moment)

    def check(self) -> None:
        self._store.check()


def test_a_store_that_is_away_for_checkpoints_does_not_stop_the_training(here: Installation) -> None:
    job_id = here.submit(chat_rows(), lora())
    store = FailingStore(here.runtime.store, lambda key: key.endswith(".tar"))
    job = here.supervise(job_id, store=store)
    assert job.status is JobStatus.SUCCEEDED
    assert here.messages(job_id).count("is on the worker only") == 1


def test_a_store_that_comes_back_gets_the_result(here: Installation) -> None:
    refusals = iter([True, True, False])
    job_id = here.submit(chat_rows(), lora())
    store = FailingStore(here.runtime.store, lambda key: "/artifacts/" in key and next(refusals, False))
    assert here.supervise(job_id, store=store).status is JobStatus.SUCCEEDED


def test_a_store_that_stays_away_puts_the_job_back_and_another_worker_finishes_it(here: Installation) -> None:
    job_id = here.submit(chat_rows(), lora())
    store = FailingStore(here.runtime.store, lambda key: "/artifacts/" in key)
    assert here.supervise(job_id, store=store).status is JobStatus.QUEUED
    assert "The result could not be stored" in here.messages(job_id)
    job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert here.steps(job_id) == list(range(1, STEPS + 1))
    assert here.balance().held_credits == 0


def test_a_full_disk_costs_checkpoints_not_the_job(here: Installation) -> None:
    job_id = here.submit(chat_rows(), lora())

    def fill(pid: int) -> None:
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        wait_for(lambda: "could not be written" in here.messages(job_id), what="the warning")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    with at_step(here, job_id, 4, fill):
        job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED, here.messages(job_id)
    assert here.steps(job_id) == list(range(1, STEPS + 1))
    assert here.messages(job_id).count("could not be written") == 1


IN_ANY_PHASE = pytest.mark.parametrize(
    "phase", ["queued", "loading", "training", "evaluating", "sampling", "exporting", "verifying"]
)
AT_THE_END = ("sampling", "exporting", "verifying")  # where an interruption may come too late


def interrupt(here: Installation, job_id: str, phase: str, verb: Callable[[Session, str, str], Job]) -> Job:
    """Ask for a pause or an end when the job is in the phase, and see how that attempt ends."""
    organization_id = here.actor.organization_id

    def ask() -> None:
        if phase != "queued":  # some phases are over in no time, but each is written down when it starts
            wait_for(lambda: PHASES[Phase(phase)] in here.messages(job_id), what=phase)
        here.runtime.database.run(lambda session: verb(session, organization_id, job_id))

    if phase == "queued":
        ask()
        return here.job(job_id)
    with Meanwhile(ask):
        return here.supervise(job_id)


@IN_ANY_PHASE
def test_cancelled_in_any_phase_it_ends_soon_and_frees_the_device(here: Installation, phase: str) -> None:
    job_id = here.submit(chat_rows(), lora(n_epochs=EPOCHS if phase in AT_THE_END else 5 * EPOCHS))
    job = interrupt(here, job_id, phase, jobs.cancel_job)
    if phase in AT_THE_END:
        assert job.status in (JobStatus.CANCELLED, JobStatus.SUCCEEDED)
    else:
        assert job.status is JobStatus.CANCELLED
        assert len(here.steps(job_id)) < 5 * STEPS
    assert trainers() == []
    assert here.balance().held_credits == 0
    assert job.charged_credits is not None
    assert job.charged_credits <= job.quote_credits


@IN_ANY_PHASE
def test_paused_in_any_phase_it_goes_on_as_if_nothing_had_been(here: Installation, phase: str) -> None:
    epochs = 2 * EPOCHS if phase == "training" else EPOCHS
    job_id = here.submit(chat_rows(), lora(n_epochs=epochs))
    job = interrupt(here, job_id, phase, jobs.pause_job)
    assert trainers() == []
    if phase not in AT_THE_END:
        assert job.status is JobStatus.PAUSED
        assert here.balance().held_credits == job.quote_credits
    if job.status is JobStatus.PAUSED:
        settings, organization_id = here.runtime.settings, here.actor.organization_id
        here.runtime.database.run(lambda session: jobs.resume_job(session, settings, organization_id, job_id))
        job = here.supervise(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert here.steps(job_id) == list(range(1, STEPS * epochs // EPOCHS + 1))
    assert here.balance().held_credits == 0
    assert job.charged_credits is not None
    assert 0 < job.charged_credits <= job.quote_credits
