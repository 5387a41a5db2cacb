"""Watching one job on one device, from its claim to its end.

Prepare (data, weights, last checkpoint), start the child, write down what it reports, and act on how it ends. What
the child says is written under the lease, so whatever goes wrong here another worker can go on from the last
checkpoint in the store.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from random import uniform
from typing import TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core.datasets.examples import DataFormat
from core.db.plain import from_plain
from core.errors import ErrorBody, StaleLeaseError, TrainingError, TunewrightError
from core.events.models import EventLevel
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.progress import Metrics
from core.jobs.states import JobStatus
from core.plans.service import training_plan
from core.runtime import Runtime
from planner.devices import Device
from planner.memory import Correction, estimate_memory
from planner.model_spec import ModelSpec
from planner.policy import step_down
from planner.setup import TrainingSetup
from worker import prepare, publish
from worker.lease_keeper import LeaseKeeper
from worker.pace import Pace
from worker.prepare import Prepared
from worker.protocol import (
    STOPPED_EXIT_CODE,
    CheckpointReport,
    ErrorReport,
    MemoryReport,
    MessageReport,
    MetricsReport,
    Phase,
    PhaseReport,
    Report,
    ResultReport,
    RunRequest,
)
from worker.trainer import TrainingChild

GIB = 1024**3
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 5.0
NOT_ON_THE_WIRE = {"type", "trained_tokens"}
SILENCE_SECONDS = 1.0
OUT_OF_MEMORY = "out_of_memory"
STEPPED_DOWN_PHASES = (Phase.PROBING, Phase.TRAINING, None)

PHASES = {
    Phase.LOADING: "Loading the base model",
    Phase.PROBING: "Trying the longest batch, to measure its memory",
    Phase.EVALUATING: "Evaluating on the held-out examples",
    Phase.SAMPLING: "Answering the held-out prompts",
    Phase.TRAINING: "Training",
    Phase.EXPORTING: "Exporting the result",
    Phase.VERIFYING: "Reloading the export in a fresh process to prove it",
}

Result = TypeVar("Result")

log = structlog.get_logger()


class Supervisor:
    """One job in the hands of this worker. `drain` and the lease keeper may call in from other threads."""

    def __init__(self, runtime: Runtime, lease: Lease, job: Job, device: Device) -> None:
        self._runtime = runtime
        self._lease = lease
        self._job = job
        self._device = device
        self._pace = Pace()
        self._child: TrainingChild | None = None
        self._stopping = threading.Event()
        self._lost = threading.Event()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens per second of the last step."""
        return self._pace.tokens_per_second

    def drain(self) -> None:
        """Stop behind a checkpoint and put the job back into the queue."""
        self._stop()

    def supervise(self) -> None:
        """Run the job until it ends or is no longer ours. Raises nothing that the job's owner can cause."""
        try:
            with LeaseKeeper(self._runtime, self._lease, on_stop=self._stop, on_lost=self._lose) as keeper:
                self._run(keeper)
        except StaleLeaseError:
            log.warning("lease_lost", job_id=self.job_id)
        finally:
            prepare.clean_up(self._runtime, self._lease)

    def _run(self, keeper: LeaseKeeper) -> None:
        try:
            prepared = prepare.prepare(self._runtime, self._lease, self._job)
            setup = self._fit(ModelSpec.from_config(prepared.base_model.config))
        except TunewrightError as error:
            self._fail(error.body)
            return
        while True:
            if self._stopping.is_set():
                self._let_go()
                return
            with keeper.device_in_use():
                ending = self._attempt(self._request(prepared, setup))
            self._account(keeper)
            match ending:
                case ResultReport():
                    self._succeed(prepared, ending)
                    return
                case ErrorReport(code=code, phase=phase) if code == OUT_OF_MEMORY and phase in STEPPED_DOWN_PHASES:
                    smaller = step_down(setup)
                    if smaller is None:
                        self._fail(self._out_of_memory(ending))
                        return
                    self._step_down(setup, smaller, "ran out of memory")
                    setup = smaller
                case ErrorReport():
                    self._fail(ErrorBody(ending.message, "server_error", ending.param, ending.code))
                    return
                case int() if ending == STOPPED_EXIT_CODE or self._stopping.is_set():
                    self._let_go()
                    return
                case int():
                    if not self._start_again(ending):
                        return
                    prepare.restore_checkpoint(self._runtime, self._job, prepared.run_directory)

    def _attempt(self, request: RunRequest) -> ResultReport | ErrorReport | int:
        """Run one child to its end: its result, its error, or the exit code of one that gave neither."""
        ending: ResultReport | ErrorReport | None = None
        self._child = child = TrainingChild(request)
        grace: threading.Timer | None = None
        try:
            if self._stopping.is_set():
                child.stop()
            for batch in child.reports(SILENCE_SECONDS):
                if self._lost.is_set():
                    raise StaleLeaseError(f"The lease on {self.job_id} was lost while it ran.")
                if self._stopping.is_set() and grace is None:
                    grace = threading.Timer(self._runtime.settings.stop_grace_seconds, child.kill)
                    grace.start()
                self._write_down(batch)
                ending = next((said for said in batch if isinstance(said, ResultReport | ErrorReport)), ending)
        except BaseException:
            child.kill()
            raise
        finally:
            if grace is not None:
                grace.cancel()
            self._child = None
            exit_code = child.close(self._runtime.settings.stop_grace_seconds)
        return ending if ending is not None else exit_code

    def _write_down(self, batch: Sequence[Report]) -> None:
        for kind, group in groupby(batch, key=type):
            if kind is MetricsReport:
                self._record_metrics([said for said in group if isinstance(said, MetricsReport)])
                continue
            for said in group:
                self._record(said)

    def _record(self, said: Report) -> None:
        match said:
            case PhaseReport():
                phase = Phase(said.phase)
                self._pace.enter(phase)
                self._write(partial(progress.enter_phase, lease=self._lease, phase=phase, message=PHASES[phase]))
            case MessageReport():
                level = EventLevel(said.level)
                self._write(partial(progress.say, lease=self._lease, message=said.message, level=level))
            case MemoryReport():
                measured = {name: value for name, value in asdict(said).items() if name != "type"}
                self._write(partial(progress.record_memory, lease=self._lease, measured=measured))
            case CheckpointReport():
                key = prepare.store_checkpoint(self._runtime, self._job, Path(said.path))
                if key is None:
                    return
                for pruned in self._write(
                    partial(
                        progress.record_checkpoint,
                        lease=self._lease,
                        step=said.step,
                        storage_key=key,
                        train_loss=said.train_loss,
                        valid_loss=said.valid_loss,
                        valid_mean_token_accuracy=said.valid_mean_token_accuracy,
                    )
                ):
                    self._runtime.store.delete(pruned)

    def _record_metrics(self, reports: Sequence[MetricsReport]) -> None:
        seconds_left = None
        metrics = []
        for report in reports:
            seconds_left = self._pace.seconds_left(report)
            data = {name: value for name, value in asdict(report).items() if name not in NOT_ON_THE_WIRE}
            metrics.append(Metrics(data, report.trained_tokens))
        self._write(partial(progress.record_metrics, lease=self._lease, metrics=metrics, seconds_left=seconds_left))

    def _fit(self, spec: ModelSpec) -> TrainingSetup:
        """The setup in force, with a smaller micro-batch where less memory is free than when it was planned."""
        setup = planned = from_plain(TrainingSetup, self._job.setup)
        free_bytes = self._device.free_bytes
        correction = training_plan(self._job.plan).memory.correction
        while (needed := self._needed(spec, setup, correction)) > free_bytes:
            smaller = step_down(setup)
            if smaller is None:
                raise TrainingError(
                    f"The run needs {needed / GIB:.1f} GiB with its bound even at a micro-batch of 1, and "
                    f"{self._device.name} has {free_bytes / GIB:.1f} GiB free now, less than when it was planned. "
                    "Something else uses the device: free it, or plan again.",
                    code="device_memory_taken",
                )
            setup = smaller
        if setup != planned:
            self._step_down(planned, setup, f"has only {free_bytes / GIB:.1f} GiB free now")
        return setup

    def _needed(self, spec: ModelSpec, setup: TrainingSetup, correction: Correction) -> int:
        return estimate_memory(spec, setup, self._device).corrected(correction).required_bytes

    def _step_down(self, setup: TrainingSetup, smaller: TrainingSetup, reason: str) -> None:
        message = (
            f"{self._device.name} {reason}: micro-batch {setup.per_device_train_batch_size} -> "
            f"{smaller.per_device_train_batch_size}, accumulation {setup.gradient_accumulation_steps} -> "
            f"{smaller.gradient_accumulation_steps}. The effective batch of {smaller.effective_batch_size}, the "
            "result and the quote stay the same."
        )
        self._write(partial(leases.step_down, lease=self._lease, setup=smaller, message=message))

    def _request(self, prepared: Prepared, setup: TrainingSetup) -> RunRequest:
        job, base_model = self._job, prepared.base_model
        return RunRequest(
            job_id=job.id,
            base_model=base_model.hub_id or base_model.id,
            base_model_revision=base_model.revision,
            base_model_path=str(prepared.weights),
            training_path=str(prepared.training_path),
            validation_path=str(prepared.validation_path) if prepared.validation_path else None,
            data_format=from_plain(DataFormat, job.plan.data_format),
            setup=setup,
            hyperparameters=training_plan(job.plan).hyperparameters,
            seed=job.seed,
            device="cpu" if self._device.kind == "cpu" else "cuda:0",
            run_directory=str(prepared.run_directory),
            plan=job.plan.plan,
            suffix=job.suffix,
            checkpoint_interval_seconds=self._runtime.settings.checkpoint_seconds,
        )

    def _succeed(self, prepared: Prepared, result: ResultReport) -> None:
        outcome = publish.publish(self._runtime, self._job, prepared.run_directory, result)
        ended = self._write(partial(progress.succeed, lease=self._lease, outcome=outcome))
        if ended.status is not JobStatus.SUCCEEDED:
            publish.withdraw(self._runtime, outcome)

    def _start_again(self, exit_code: int) -> bool:
        """After a child that died without a word: whether to start another."""
        cause = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        return self._write(partial(leases.start_again, settings=self._runtime.settings, lease=self._lease, cause=cause))

    def _let_go(self) -> None:
        self._write(partial(leases.let_go, lease=self._lease, reason="The worker shuts down; moved back to the queue"))

    def _fail(self, error: ErrorBody) -> None:
        self._write(partial(leases.fail, lease=self._lease, error=error))

    def _out_of_memory(self, report: ErrorReport) -> ErrorBody:
        first = from_plain(TrainingSetup, self._job.setup).per_device_train_batch_size
        message = (
            f"{self._device.name} ran out of memory even at a micro-batch of 1, after trying {first} and its halves "
            f"({report.message}). A smaller max_length, method 'qlora' or a larger device would fit. Nothing is "
            "charged."
        )
        return ErrorBody(message, "server_error", None, OUT_OF_MEMORY)

    def _account(self, keeper: LeaseKeeper) -> None:
        seconds = keeper.take_seconds()
        settings = self._runtime.settings
        self._write(partial(leases.renew, settings=settings, lease=self._lease, used_seconds=seconds))

    def _write(self, work: Callable[[Session], Result]) -> Result:
        """`work` in a transaction, again and again while the database is away and the lease may still be ours."""
        delay_seconds = FIRST_DELAY_SECONDS
        while True:
            try:
                return self._runtime.database.run(work)
            except OperationalError as error:
                log.warning("database_away", job_id=self.job_id, error=str(error.orig))
                if self._lost.wait(delay_seconds * uniform(0.5, 1.5)):
                    raise StaleLeaseError(f"The lease on {self.job_id} ran out while the database was away.") from None
                delay_seconds = min(delay_seconds * 2, LONGEST_DELAY_SECONDS)

    def _stop(self) -> None:
        self._stopping.set()
        child = self._child
        if child is not None:
            child.stop()

    def _lose(self) -> None:
        self._lost.set()
        child = self._child
        if child is not None:
            child.kill()
