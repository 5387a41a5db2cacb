"""What a running job tells while it runs, and what it leaves behind when it is done. All guarded by the lease."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.artifacts.models import Checkpoint, JobArtifact
from core.artifacts.store import StoredObject
from core.datasets import service as files
from core.datasets.models import FilePurpose
from core.db.serialization import serialize
from core.db.session import database_now
from core.events import queries as event_queries
from core.events import service as events
from core.events.models import EventLevel, EventType
from core.ids import new_id
from core.jobs import queries, trail
from core.jobs.evaluation import Evaluation, HeldOut
from core.jobs.lease import Lease, account, hold_job
from core.jobs.models import Job
from core.jobs.settlement import end
from core.jobs.states import JobStatus
from core.jobs.verdict import Verdict
from core.registry.models import FineTunedModel
from core.registry.queries import checkpoint_models
from planner.objectives import TRAIN_LOSS, VALID_LOSS

CHECKPOINTS_KEPT = 2  # the newest, and beside them the best by validation loss


@dataclass(frozen=True)
class Metrics:
    """The numbers of one step, as the wire shows them, and the tokens trained on so far."""

    data: Mapping[str, Any]
    processed_tokens: int

    @property
    def step(self) -> int:
        """The optimizer step, from 1."""
        return int(self.data["step"])


@dataclass(frozen=True)
class PublishedFile:
    """A file in the store that the job publishes under `name`."""

    name: str
    stored: StoredObject


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind. `files` are in the order of their importance, `metrics.csv` among them."""

    files: Sequence[PublishedFile]
    processed_tokens: int
    message: str
    step_seconds: float | None = None  # of one optimizer step, on average, where one was measured
    evaluation: Evaluation | None = None
    verdict: Verdict | None = None


def enter_phase(session: Session, lease: Lease, phase: str, message: str) -> None:
    """Record that the run entered a phase. Raises StaleLeaseError."""
    job = hold_job(session, lease)
    job.phase = phase
    events.append(session, job.id, message)
    trail.say(session, job, "job_phase", phase=phase)


def say(session: Session, lease: Lease, message: str, level: EventLevel = EventLevel.INFO) -> None:
    """Tell the owner something. Raises StaleLeaseError."""
    job = hold_job(session, lease)
    events.append(session, job.id, message, level=level)
    if level is not EventLevel.INFO:
        trail.say(session, job, "job_warned", level="warning", message=message)


def record_metrics(
    session: Session,
    lease: Lease,
    metrics: Sequence[Metrics],
    seconds_left: float | None,
    used_seconds: float = 0.0,
) -> None:
    """Append the steps' numbers, each step once however often it is reported. Raises StaleLeaseError.

    `used_seconds` is the device time since it was last accounted for (`core.jobs.lease.renew`).
    """
    job = hold_job(session, lease)
    account(job, used_seconds)
    known = event_queries.metrics_since(session, job.id, min(item.step for item in metrics))
    for item in metrics:
        evaluation = item.data.get(VALID_LOSS) is not None
        if (item.step, evaluation) in known:
            continue
        known.add((item.step, evaluation))
        events.append(session, job.id, _sentence(item), type=EventType.METRICS, data=item.data)
        if item.step > job.step:
            job.step, job.useful_seconds, job.repeats_until_step = item.step, job.used_seconds, None
        job.processed_tokens = item.processed_tokens
        if evaluation:
            job.valid_loss = item.data[VALID_LOSS]
    if seconds_left is not None:
        job.estimated_finish_at = database_now(session) + timedelta(seconds=seconds_left)


def record_held_out(session: Session, lease: Lease, held_out: HeldOut) -> None:
    """Record what the run is measured on. Raises StaleLeaseError."""
    hold_job(session, lease).held_out = serialize(held_out)


def record_memory(session: Session, lease: Lease, measured: Mapping[str, Any]) -> None:
    """Record the measured peak. Raises StaleLeaseError."""
    job = hold_job(session, lease)
    job.memory_measured = dict(measured)


def record_checkpoint(
    session: Session,
    lease: Lease,
    step: int,
    stored: StoredObject,
    metrics: Mapping[str, float],
) -> list[str]:
    """Record a stored checkpoint with its step's metrics; returns the store's keys that are to be deleted now.

    Raises StaleLeaseError.

    One of a step that none was written at before shows that the job advances: its crashes are counted anew.
    """
    job = hold_job(session, lease)
    rows = {checkpoint.step: checkpoint for checkpoint in queries.checkpoints(session, job.id)}
    row = rows.get(step)
    if row is None:
        if step > max(rows, default=-1):
            job.attempts = 0
        row = rows[step] = Checkpoint(
            id=new_id("ftckpt_"), job_id=job.id, organization_id=job.organization_id, step=step
        )
        session.add(row)
    pruned = [row.storage_key] if row.storage_key not in (None, stored.key) else []
    row.storage_key, row.size_bytes, row.sha256 = stored.key, stored.size_bytes, stored.sha256
    row.metrics, row.valid_loss = dict(metrics), metrics.get(VALID_LOSS)
    kept = [checkpoint for checkpoint in rows.values() if checkpoint.storage_key is not None]
    best = min(kept, key=_validation_loss)
    published = checkpoint_models(session, [job.id])
    for old in sorted(kept, key=lambda checkpoint: -checkpoint.step)[CHECKPOINTS_KEPT:]:
        if old is not best and old.id not in published:
            assert old.storage_key is not None, "only stored ones are kept"
            pruned.append(old.storage_key)
            old.storage_key = None
    trail.say(session, job, "checkpoint_kept", step=step, size_bytes=stored.size_bytes, dropped=len(pruned))
    session.flush()
    return pruned


def succeed(session: Session, lease: Lease, outcome: Outcome) -> Job:
    """Publish, settle and end the job in one step. Raises StaleLeaseError."""
    job = hold_job(session, lease)
    if job.status is JobStatus.CANCELLING:
        end(session, job, JobStatus.CANCELLED, "Cancelled by its owner")
        return job
    for position, file in enumerate(outcome.files):
        session.add(
            JobArtifact(
                id=new_id("artifact_"),
                job_id=job.id,
                organization_id=job.organization_id,
                position=position,
                name=file.name,
                storage_key=file.stored.key,
                size_bytes=file.stored.size_bytes,
                sha256=file.stored.sha256,
            )
        )
    metrics = next(file for file in outcome.files if file.name == "metrics.csv")
    upload = files.Upload(new_id("file-"), f"{job.id}-metrics.csv", metrics.stored)
    result = files.create_file(session, job.organization_id, upload, FilePurpose.FINE_TUNE_RESULTS)
    job.result_file_id = result.id
    job.processed_tokens = outcome.processed_tokens
    job.step_seconds = outcome.step_seconds
    if outcome.evaluation is not None:
        job.evaluation = serialize(outcome.evaluation)
        job.valid_loss = outcome.evaluation.after.valid_loss  # of what is published, which may be an earlier step's
    if outcome.verdict is not None:
        job.verdict = serialize(outcome.verdict)
    job.fine_tuned_model = model_name(job)
    session.add(
        FineTunedModel(
            id=job.fine_tuned_model,
            organization_id=job.organization_id,
            job_id=job.id,
            base_model=job.model,
            valid_loss=job.valid_loss,
        )
    )
    events.append(session, job.id, f"New fine-tuned model created: {job.fine_tuned_model}")
    events.append(session, job.id, outcome.message)
    if outcome.verdict is not None:
        events.append(session, job.id, outcome.verdict.message)
    end(session, job, JobStatus.SUCCEEDED, "The job has successfully completed")
    return job


def model_name(job: Job) -> str:
    """The id of the model a job makes: `ft:{base}:{org}:{suffix}:{id}`."""
    unique = job.id.removeprefix("ftjob-")[-8:].lower()
    organization = job.organization_id.removeprefix("org-")[-8:].lower()
    return f"ft:{job.model}:{organization}:{job.suffix or ''}:{unique}"


def _validation_loss(checkpoint: Checkpoint) -> tuple[float, int]:
    """To find the best by: the earliest of equals. One that was not evaluated is never best."""
    return (math.inf if checkpoint.valid_loss is None else checkpoint.valid_loss), checkpoint.step


def _sentence(metrics: Metrics) -> str:
    data = metrics.data
    if data.get(VALID_LOSS) is not None:
        return f"Step {data['step']}/{data['total_steps']}: validation loss={data[VALID_LOSS]:.4f}"
    loss = data.get(TRAIN_LOSS)
    return f"Step {data['step']}/{data['total_steps']}: training loss=" + ("skipped" if loss is None else f"{loss:.4f}")
