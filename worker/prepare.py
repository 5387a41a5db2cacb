"""Bringing to this machine what a run needs: data, weights and the last checkpoint, in a directory of its own."""

import hashlib
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from core.accounts import hub_tokens
from core.artifacts.models import Checkpoint
from core.artifacts.store import StoredObject
from core.datasets.models import StoredFile
from core.errors import NotFoundError, StoreError, TrainingError
from core.jobs import queries
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.plans.service import memory_source
from core.registry.base_models import BaseModel, ModelRef
from core.registry.weights import check_weights
from core.runtime import Runtime
from planner.policy.candidates import DerivedMemory
from worker.fetching import Fetcher

CHECKPOINTS = "checkpoints"  # the child's folder of checkpoints, under the run's directory

log = structlog.get_logger()


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, on local paths."""

    run_directory: Path
    base_model: BaseModel
    weights: Path
    training_path: Path
    validation_path: Path | None


def prepare(runtime: Runtime, lease: Lease, job: Job, fetcher: Fetcher) -> Prepared:
    """Fetch what the run needs, and check that it is what was planned.

    Raises NotFoundError for a file deleted meanwhile, TrainingError for bytes that are not the planned ones,
    StoreError, what finding the base model raises, and what the fetcher does.
    """
    plan = job.plan
    directory = run_directory(runtime, lease)
    for stale in runtime.settings.runs_dir.glob(f"{job.id}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    directory.mkdir(parents=True)
    with runtime.database.read() as session:
        access = hub_tokens.access_of(session, runtime.settings, job.organization_id)
    base_model, weights = fetcher.weights(ModelRef(job.model, plan.model_revision), access)
    source = memory_source(plan, base_model.config)
    check_weights(replace(base_model, directory=weights), source.spec if isinstance(source, DerivedMemory) else None)
    prepared = Prepared(
        run_directory=directory,
        base_model=base_model,
        weights=weights,
        training_path=_fetch(
            runtime, fetcher, job.training_file_id, plan.training_sha256, directory / "data" / "training"
        ),
        validation_path=_fetch(
            runtime, fetcher, job.validation_file_id, plan.validation_sha256, directory / "data" / "validation"
        )
        if job.validation_file_id
        else None,
    )
    restore_checkpoint(runtime, fetcher, job, directory)
    return prepared


def run_directory(runtime: Runtime, lease: Lease) -> Path:
    """The directory of one lease on one job: never shared with a worker that lost the job."""
    return runtime.settings.runs_dir / f"{lease.job_id}-{lease.token}"


def clean_up(runtime: Runtime, lease: Lease) -> None:
    """Remove what the run left on this machine."""
    shutil.rmtree(run_directory(runtime, lease), ignore_errors=True)


def restore_checkpoint(runtime: Runtime, fetcher: Fetcher, job: Job, directory: Path) -> None:
    """Unpack the checkpoints that the store still has; the child verifies them, and starts over without one.

    Raises StoreError where the store is away, and what the fetcher does.
    """
    with runtime.database.read() as session:
        stored = list(queries.stored_checkpoints(session, job.id))
    for checkpoint in stored:
        try:
            _unpack(fetcher, checkpoint, directory / CHECKPOINTS)
        except (NotFoundError, tarfile.TarError) as error:
            log.warning("checkpoint_unreadable", job_id=job.id, step=checkpoint.step, error=str(error))


def store_checkpoint(runtime: Runtime, lease: Lease, job: Job, checkpoint: Path) -> StoredObject | None:
    """Put a complete checkpoint into the store. Raises StoreError, also for a full disk.

    None where the child has replaced it by a newer one meanwhile, whose report follows.
    """
    packed = checkpoint.with_name(checkpoint.name + ".tar")
    try:
        with tarfile.open(packed, "w") as archive:
            archive.add(checkpoint, arcname=checkpoint.name)
        return runtime.store.put_file(f"{lease.storage_prefix(job.organization_id)}/{packed.name}", packed)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"The checkpoint cannot be packed: {error.strerror or error}.") from error
    finally:
        packed.unlink(missing_ok=True)


def _unpack(fetcher: Fetcher, checkpoint: Checkpoint, target: Path) -> None:
    assert checkpoint.storage_key is not None, "only stored checkpoints are restored"
    target.mkdir(parents=True, exist_ok=True)
    packed = fetcher.materialize(checkpoint.storage_key, target.parent / "data")
    with tarfile.open(packed) as archive:
        archive.extractall(target, filter="data")


def _fetch(runtime: Runtime, fetcher: Fetcher, file_id: str, planned_sha256: str | None, directory: Path) -> Path:
    with runtime.database.read() as session:
        file = session.get(StoredFile, file_id)
    if file is None:
        raise NotFoundError(f"The file {file_id} was deleted before the job could read it.", code="file_not_found")
    directory.mkdir(parents=True)
    try:
        path = fetcher.materialize(file.storage_key, directory)
    except NotFoundError:
        raise TrainingError(
            f"The bytes of the file {file_id} ({file.filename}) are not in the artifact store any more, though nobody "
            "deleted the file. Upload it again and start a new job; nothing is charged.",
            code="data_lost",
        ) from None
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != (planned_sha256 or file.sha256):
        raise TrainingError(
            f"The file {file_id} ({file.filename}) is not what was planned: its SHA-256 was "
            f"{(planned_sha256 or file.sha256)[:12]}, and what the artifact store has now is {found[:12]}. Upload it "
            "again and start a new job; nothing is charged.",
            code="data_changed",
        )
    return path
