"""Writing down what a training child says, under the lease: whatever breaks, it is written once or not at all."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.db.serialization import deserialize
from core.db.session import is_away
from core.errors import StaleLeaseError, StoreError
from core.events.models import EventLevel
from core.jobs import progress
from core.jobs.evaluation import HeldOut
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.progress import Metrics
from core.outage_log import OutageLog
from core.runtime import Runtime
from planner.objectives import SPECS
from planner.setup import TrainingSetup
from worker import prepare
from worker.backoff import delays
from worker.eta import Eta
from worker.lease_keeper import LeaseKeeper
from worker.protocol import (
    CheckpointReport,
    HeldOutReport,
    MemoryReport,
    MessageReport,
    MetricsReport,
    Phase,
    PhaseReport,
    Report,
)

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


class Recorder:
    """Where the reports of one lease on one job go. `lost` is set once the lease is another's."""

    def __init__(self, runtime: Runtime, lease: Lease, job: Job, keeper: LeaseKeeper, lost: threading.Event) -> None:
        self._runtime, self._lease, self._job = runtime, lease, job
        self._keeper, self._lost = keeper, lost
        self._eta = Eta()
        self._metrics = [metric.name for metric in SPECS[deserialize(TrainingSetup, job.setup).objective].metrics]
        self._store_is_away = False
        self._database = OutageLog("database_away", "database_back")

    @property
    def tokens_per_second(self) -> float | None:
        """Non-padding tokens per second of the last step."""
        return self._eta.tokens_per_second

    def write_down(self, batch: Sequence[Report]) -> None:
        """What the child has just said. Raises StaleLeaseError."""
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
                self._eta.enter(phase)
                self.write(partial(progress.enter_phase, lease=self._lease, phase=phase, message=PHASES[phase]))
            case MessageReport():
                level = EventLevel(said.level)
                self.write(partial(progress.say, lease=self._lease, message=said.message, level=level))
            case HeldOutReport():
                held_out = HeldOut(said.rows, said.scored_tokens, said.sha256)
                self.write(partial(progress.record_held_out, lease=self._lease, held_out=held_out))
            case MemoryReport():
                measured = {name: value for name, value in asdict(said).items() if name != "type"}
                self.write(partial(progress.record_memory, lease=self._lease, measured=measured))
            case CheckpointReport():
                try:
                    self._keep_checkpoint(said)
                except StoreError as error:
                    self._say_store_is_away(said, error)
                else:
                    self._store_is_away = False

    def _keep_checkpoint(self, said: CheckpointReport) -> None:
        stored = prepare.store_checkpoint(self._runtime, self._lease, self._job, Path(said.path))
        if stored is None:
            log.info("checkpoint_not_kept", job_id=self._job.id, step=said.step, reason="a newer one has replaced it")
            return
        for pruned in self.write(
            partial(
                progress.record_checkpoint,
                lease=self._lease,
                step=said.step,
                stored=stored,
                metrics=said.metrics,
            )
        ):
            self._runtime.store.delete(pruned)

    def _say_store_is_away(self, said: CheckpointReport, error: StoreError) -> None:
        """Once for each time it goes away: the run does not need it, only a successor on another machine would."""
        log.warning("checkpoint_not_kept", job_id=self._job.id, step=said.step, reason=error.message)
        if not self._store_is_away:
            message = f"The checkpoint of step {said.step} is on the worker only ({error.message}); training goes on"
            self.write(partial(progress.say, lease=self._lease, message=message, level=EventLevel.WARN))
        self._store_is_away = True

    def _record_metrics(self, reports: Sequence[MetricsReport]) -> None:
        seconds_left = None
        metrics = []
        for report in reports:
            seconds_left = self._eta.seconds_left(report)
            metrics.append(Metrics(report.shown(self._metrics), report.processed_tokens))
        self.write(
            partial(
                progress.record_metrics,
                lease=self._lease,
                metrics=metrics,
                seconds_left=seconds_left,
                used_seconds=self._keeper.take_seconds(),
            )
        )

    def write(self, work: Callable[[Session], Result]) -> Result:
        """`work` in a transaction, again and again while the database is away and the lease may still be ours.

        Raises StaleLeaseError.
        """
        away_since: float | None = None
        for delay_seconds in delays():
            try:
                result = self._runtime.database.run(work)
            except DBAPIError as error:
                if not is_away(error):
                    raise
                away_since = away_since or time.monotonic()
                self._database.away(error.orig, job_id=self._job.id)
                if self._lost.wait(delay_seconds):
                    raise StaleLeaseError(f"The lease on {self._job.id} ran out while the database was away.") from None
            else:
                if away_since is not None:
                    self._database.back(job_id=self._job.id)
                    self._keeper.take_seconds()  # an outage is not charged
                    away_seconds = time.monotonic() - away_since
                    message = f"The database was away for {away_seconds:.1f} s; training went on and nothing is lost"
                    with suppress(StaleLeaseError):  # `work` may have been the job's end
                        self.write(partial(progress.say, lease=self._lease, message=message, level=EventLevel.WARN))
                return result
        raise AssertionError("delays never end")
