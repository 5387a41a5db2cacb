"""Putting what a finished run made into the store."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from core.artifacts.objects import file_chunks
from core.jobs.lease import Lease
from core.jobs.models import Job
from core.jobs.progress import Outcome, PublishedFile
from core.runtime import Runtime
from worker.fetching import TransferStoppedError
from worker.protocol import ResultReport


def publish(
    runtime: Runtime,
    lease: Lease,
    job: Job,
    directory: Path,
    result: ResultReport,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Store every file of the result, in the order the child names them: adapter first.

    Raises StoreError, and TransferStoppedError once `is_stopped` says so, with nothing left in the store.
    """
    prefix = f"{lease.storage_prefix(job.organization_id)}/artifacts"
    files: list[PublishedFile] = []
    try:
        for name, path in result.files.items():
            stored = runtime.store.put(f"{prefix}/{name}", _chunks(directory / path, is_stopped))
            files.append(PublishedFile(name, stored))
    except TransferStoppedError:
        _delete(runtime, files)
        raise
    return Outcome(
        files, result.processed_tokens, _summary(result), result.step_seconds, result.evaluation, result.verdict
    )


def withdraw(runtime: Runtime, outcome: Outcome) -> None:
    """Delete the files of a result that was not wanted any more."""
    _delete(runtime, outcome.files)


def _delete(runtime: Runtime, files: Sequence[PublishedFile]) -> None:
    for file in files:
        runtime.store.delete(file.stored.key)


def _chunks(path: Path, is_stopped: Callable[[], bool]) -> Iterator[bytes]:
    """The file's bytes, until the job is to stop: the store gives up an object whose stream breaks."""
    for chunk in file_chunks(path):
        if is_stopped():
            raise TransferStoppedError
        yield chunk
    if is_stopped():
        raise TransferStoppedError


def _summary(result: ResultReport) -> str:
    trained = f"Trained {result.steps:,} steps on {result.processed_tokens:,} tokens in {result.train_seconds:,.0f} s"
    if result.initial_valid_loss is not None and result.final_valid_loss is not None:
        trained += f"; validation loss went from {result.initial_valid_loss:.3f} to {result.final_valid_loss:.3f}"
    scores = result.evaluation
    if scores is not None and scores.before.exact_match is not None and scores.after.exact_match is not None:
        trained += f"; exact match went from {scores.before.exact_match:.1%} to {scores.after.exact_match:.1%}"
    if result.checkpoints:
        share = result.checkpoint_seconds / max(result.train_seconds, result.checkpoint_seconds)
        trained += f"; {result.checkpoints} checkpoints took {result.checkpoint_seconds:.1f} s of it ({share:.1%})"
    return f"{trained}. The export was reloaded in a fresh process and gives the same loss."
