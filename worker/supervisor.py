"""Watching one job on its devices, from its claim to its end.

Prepare (data, weights, last checkpoint), start the child, write down what it reports, and act on how it ends. What
the child says is written under the lease, so whatever goes wrong here another worker can go on from the last
checkpoint in the store.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from core.datasets.examples import DataFormat
from core.datasets.final_answers import ExactMatch
from core.db.serialization import deserialize
from core.errors import ErrorBody, ServiceUnavailableError, StaleLeaseError, StoreError, TrainingError, TunewrightError
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.plans.service import memory_source, training_plan
from core.runtime import Runtime
from planner.devices import Device
from planner.memory.estimate import Correction
from planner.policy.candidates import MemorySource
from planner.policy.choice import step_down
from planner.setup import TrainingSetup
from worker import prepare, publish
from worker.backoff import delays, retry_while_away
from worker.fetching import InterruptibleFetcher, TransferStoppedError
from worker.fork_server import ForkServerError
from worker.lease_keeper import LeaseKeeper
from worker.machine import device_again
from worker.prepare import Prepared
from worker.protocol import (
    STOPPED_EXIT_CODE,
    CheckpointReport,
    ErrorReport,
    Phase,
    ResultReport,
    RunRequest,
)
from worker.recorder import Recorder
from worker.release import wait_until_released
from worker.trainer import TrainingChild
from worker.watchdog import Watchdog

GIB = 1024**3
FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS = 0.5, 30.0
LOWERED_RATE = 0.25  # of the planned learning rate, after a divergence
SILENCE_SECONDS = 1.0
OUT_OF_MEMORY, DIVERGED = "out_of_memory", "loss_diverged"
STEPPED_DOWN_PHASES = (Phase.PROBING, Phase.TRAINING, None)

Result = TypeVar("Result")

log = structlog.get_logger()


@dataclass(frozen=True)
class Exit:
    """A child that ended without a result and without an error; `cause` completes "The training process …"."""

    code: int
    cause: str

    @classmethod
    def of(cls, code: int, hung_seconds: float | None) -> "Exit":
        """The end of a child, which was killed where it had hung."""
        if hung_seconds is not None:
            return cls(code, f"said nothing for {hung_seconds:.0f} s and was ended")
        return cls(code, f"died (signal {-code})" if code < 0 else f"died (exit code {code})")


Ending = ResultReport | ErrorReport | Exit


class Supervisor:
    """One job in the hands of this worker. `drain` and the lease keeper may call in from other threads."""

    def __init__(self, runtime: Runtime, lease: Lease, job: Job, devices: Sequence[Device]) -> None:
        self._runtime = runtime
        self._lease = lease
        self._job = job
        self._devices, self._device = devices, devices[0]  # alike, of which one stands for all
        self._child: TrainingChild | None = None
        self._stopping = threading.Event()
        self._lost = threading.Event()
        self._restart_delays = delays(FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS)  # anew with each checkpoint
        self._fetcher = InterruptibleFetcher(runtime, self._is_stopped)
        self._keeper = LeaseKeeper(runtime, lease, on_stop=self._stop, on_lost=self._lose)
        self._recorder = Recorder(runtime, lease, job, self._keeper, self._lost)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._job.id

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens per second of the last step."""
        return self._recorder.tokens_per_second

    def drain(self) -> None:
        """Stop after a checkpoint and put the job back into the queue."""
        self._stop()

    def supervise(self) -> None:
        """Run the job until it ends or is no longer ours. Raises nothing that the job's owner can cause.

        Raises ForkServerError, with the job back in the queue, where this worker can start no process.
        """
        try:
            with self._keeper:
                try:
                    self._run()
                except ForkServerError:
                    self._release("The worker can start no process for it; moved back to the queue")
                    raise
                except OSError:
                    self._account()  # a successor on this machine removes our files: the lease is lost then
                    raise
        except StaleLeaseError:
            log.warning("lease_lost", job_id=self.job_id)
        finally:
            prepare.clean_up(self._runtime, self._lease)

    def _run(self) -> None:
        try:
            prepared = self._outlast(lambda: prepare.prepare(self._runtime, self._lease, self._job, self._fetcher))
            setup = self._fit(memory_source(self._job.plan, prepared.base_model.config))
        except TransferStoppedError:
            self._release_unless_lost("prepared")
        except ServiceUnavailableError as error:
            self._release(f"{error.message} Moved back to the queue")
        except TunewrightError as error:
            self._fail(error.body)
        else:
            self._train(prepared, setup)

    def _train(self, prepared: Prepared, setup: TrainingSetup) -> None:
        """Start children until one brings the run to an end."""
        while True:
            if self._stopping.is_set():
                self._release()
                return
            with self._keeper.device_in_use():
                ending = self._attempt(self._request(prepared, setup))
            self._account()
            match ending:
                case ResultReport():
                    self._succeed(prepared, ending)
                    return
                case ErrorReport(code=code) if code == OUT_OF_MEMORY:
                    smaller = step_down(setup) if ending.phase in STEPPED_DOWN_PHASES else None
                    if smaller is None:
                        self._fail(self._out_of_memory(ending))
                        return
                    self._step_down(setup, smaller, "ran out of memory")
                    setup = smaller
                case ErrorReport(code=code) if code == DIVERGED and self._lower_learning_rate(ending):
                    pass
                case ErrorReport():
                    self._fail(ErrorBody(ending.message, ending.error_type, ending.param, ending.code))
                    return
                case Exit(code=code) if code == STOPPED_EXIT_CODE or self._stopping.is_set():
                    self._release()
                    return
                case Exit():
                    if sick := [now for now in map(device_again, self._devices) if now.problem is not None]:
                        self._release(f"{sick[0].name} cannot train now: {sick[0].problem}. Moved back to the queue")
                        return
                    if not self._start_again(ending):
                        return
                    self._restore_checkpoint(prepared)

    def _restore_checkpoint(self, prepared: Prepared) -> None:
        """Beside the child's own, which are on this machine still, and where the store has newer ones."""
        try:
            prepare.restore_checkpoint(self._runtime, self._fetcher, self._job, prepared.run_directory)
        except StoreError as error:
            log.warning("checkpoint_unreadable", job_id=self.job_id, error=error.message)
        except TransferStoppedError:
            log.info("checkpoint_not_needed", job_id=self.job_id)  # the next thing is to stop

    def _attempt(self, request: RunRequest) -> Ending:
        """Run one child to its end."""
        ending: ResultReport | ErrorReport | None = None
        hung_seconds: float | None = None
        settings = self._runtime.settings
        # A compiled step is silent while its like is compiled, which takes what it takes.
        stall_seconds = settings.silence_seconds if request.setup.torch_compile else settings.stall_seconds
        watchdog = Watchdog(stall_seconds, settings.silence_seconds)
        self._child = child = TrainingChild(request, settings.hang_seconds)
        grace: threading.Timer | None = None
        try:
            with child:
                log.info("training_started", process_id=child.process_id, **self._started_with(request))
                if self._stopping.is_set():
                    child.stop()
                for batch in child.reports(SILENCE_SECONDS):
                    if self._lost.is_set():
                        raise StaleLeaseError(f"The lease on {self.job_id} was lost while it ran.")
                    if self._stopping.is_set() and grace is None:
                        grace = threading.Timer(settings.stop_grace_seconds, child.kill)
                        grace.start()
                    watchdog.hear(batch)
                    if hung_seconds is None and (hung_seconds := watchdog.hung_for()) is not None:
                        child.kill()
                    if any(isinstance(said, CheckpointReport) for said in batch):
                        self._restart_delays = delays(FIRST_RESTART_SECONDS, LONGEST_RESTART_SECONDS)
                    self._recorder.write_down(batch)
                    ending = next((said for said in batch if isinstance(said, ResultReport | ErrorReport)), ending)
        finally:
            if grace is not None:
                grace.cancel()
            self._child = None
            group_id = child.process_id
            exit_code = child.close(settings.stop_grace_seconds)
            for device in self._devices:
                wait_until_released(device, group_id, settings.stop_grace_seconds)
        return ending if ending is not None else Exit.of(exit_code, hung_seconds)

    def _started_with(self, request: RunRequest) -> dict[str, Any]:
        setup = request.setup
        return {
            "job_id": self.job_id,
            "method": setup.method.value,
            "device": self._device.name,
            "per_device_train_batch_size": setup.per_device_train_batch_size,
        }

    def _fit(self, memory: MemorySource) -> TrainingSetup:
        """The setup in force, with a smaller micro-batch where less memory is free than when it was planned."""
        setup = planned = deserialize(TrainingSetup, self._job.setup)
        free_bytes = min(device.free_bytes for device in self._devices)
        correction = training_plan(self._job.plan).memory.correction
        while (needed := self._needed(memory, setup, correction)) > free_bytes:
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

    def _needed(self, memory: MemorySource, setup: TrainingSetup, correction: Correction) -> int:
        return memory.estimate(setup, self._device).corrected(correction).required_bytes

    def _step_down(self, setup: TrainingSetup, smaller: TrainingSetup, reason: str) -> None:
        message = (
            f"{self._device.name} {reason}: micro-batch {setup.per_device_train_batch_size} -> "
            f"{smaller.per_device_train_batch_size}, accumulation {setup.gradient_accumulation_steps} -> "
            f"{smaller.gradient_accumulation_steps}. The effective batch of {smaller.effective_batch_size}, the "
            "result and the quote stay the same."
        )
        self._recorder.write(partial(leases.step_down, lease=self._lease, setup=smaller, message=message))

    def _request(self, prepared: Prepared, setup: TrainingSetup) -> RunRequest:
        job, base_model = self._job, prepared.base_model
        return RunRequest(
            job_id=job.id,
            base_model=base_model.hub_id or base_model.id,
            base_model_revision=base_model.hub_revision,
            base_model_path=str(prepared.weights),
            training_path=str(prepared.training_path),
            validation_path=str(prepared.validation_path) if prepared.validation_path else None,
            data_format=deserialize(DataFormat, job.plan.data_format),
            setup=setup,
            hyperparameters=training_plan(job.plan).hyperparameters,
            seed=job.seed,
            device="cpu" if self._device.kind == "cpu" else "cuda:0",
            visible_devices=tuple(device.uuid for device in self._devices if device.kind == "cuda"),
            run_directory=str(prepared.run_directory),
            plan=job.plan.plan,
            suffix=job.suffix,
            checkpoint_interval_seconds=self._runtime.settings.checkpoint_seconds,
            learning_rate_factor=job.learning_rate_factor,
            chat_template=job.plan.chat_template,
            exact_match=deserialize(ExactMatch, job.plan.exact_match) if job.plan.exact_match else None,
        )

    def _succeed(self, prepared: Prepared, result: ResultReport) -> None:
        try:
            outcome = self._outlast(
                lambda: publish.publish(
                    self._runtime, self._lease, self._job, prepared.run_directory, result, self._is_stopped
                )
            )
        except TransferStoppedError:
            self._release_unless_lost("published")
            return
        except ServiceUnavailableError as error:
            self._release(f"The result could not be stored: {error.message} Moved back to the queue")
            return
        ended = self._recorder.write(partial(progress.succeed, lease=self._lease, outcome=outcome))
        if ended.status is not JobStatus.SUCCEEDED:
            publish.withdraw(self._runtime, outcome)

    def _start_again(self, ended: Exit) -> bool:
        """After a child that ended without a word: whether to start another, a little later each time."""
        settings = self._runtime.settings
        if not self._recorder.write(
            partial(leases.start_again, settings=settings, lease=self._lease, cause=ended.cause)
        ):
            return False
        self._stopping.wait(next(self._restart_delays))
        return True

    def _lower_learning_rate(self, report: ErrorReport) -> bool:
        """After a divergence: whether to go on from the last checkpoint with smaller steps, which is tried once."""
        message = f"{report.message} Going on from the last checkpoint at {LOWERED_RATE:g} times the rate."
        lowered = self._recorder.write(
            partial(leases.lower_learning_rate, lease=self._lease, factor=LOWERED_RATE, message=message)
        )
        if lowered:
            self._job.learning_rate_factor = LOWERED_RATE
        return lowered

    def _release(self, reason: str = "The worker shuts down; moved back to the queue") -> None:
        self._recorder.write(partial(leases.release, lease=self._lease, reason=reason))

    def _release_unless_lost(self, doing: str) -> None:
        if self._lost.is_set():
            raise StaleLeaseError(f"The lease on {self.job_id} was lost while it was {doing}.") from None
        self._release()

    def _is_stopped(self) -> bool:
        return self._stopping.is_set() or self._lost.is_set()

    def _fail(self, error: ErrorBody) -> None:
        self._recorder.write(partial(leases.fail, lease=self._lease, error=error))

    def _out_of_memory(self, report: ErrorReport) -> ErrorBody:
        first = deserialize(TrainingSetup, self._job.setup).per_device_train_batch_size
        if report.phase in STEPPED_DOWN_PHASES:
            tried = f"even at a micro-batch of 1, after trying {first} and its halves"
            fits = "A smaller max_length, method 'qlora' or a larger device would fit."
        else:
            tried = f"in the phase {report.phase!s}, which no smaller batch can help"
            fits = "Method 'qlora', a smaller base model or a larger device would fit."
        message = f"{self._device.name} ran out of memory {tried} ({report.message}) {fits} Nothing is charged."
        return ErrorBody(message, "server_error", None, OUT_OF_MEMORY)

    def _account(self) -> None:
        seconds = self._keeper.take_seconds()
        settings = self._runtime.settings
        self._recorder.write(partial(leases.renew, settings=settings, lease=self._lease, used_seconds=seconds))

    def _outlast(self, work: Callable[[], Result]) -> Result:
        """`work`, waiting for the store while it is away. Raises ServiceUnavailableError, and StaleLeaseError."""
        result = retry_while_away(work, self._runtime.settings.outage_seconds, self._stopping.wait)
        if self._lost.is_set():
            raise StaleLeaseError(f"The lease on {self.job_id} was lost while the store was away.")
        return result

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
