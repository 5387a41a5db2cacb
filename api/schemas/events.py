"""What a job says, keeps and leaves behind: events, checkpoints, artifacts."""

from collections.abc import Collection
from typing import Any, Literal
from urllib.parse import quote

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas.base import IdentifiedBody, ResponseBody, unix_seconds
from core.artifacts.models import Checkpoint, JobArtifact
from core.events.models import EventLevel, EventType, JobEvent
from core.jobs.models import Job
from core.jobs.publishing import checkpoint_model_name

EVENT_EXAMPLE: JsonDict = {
    "id": "ftevent-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
    "object": "fine_tuning.job.event",
    "created_at": 1795219200,
    "level": "info",
    "message": "Step 12/120: training loss=1.8421",
    "type": "metrics",
    "data": {
        "step": 12,
        "total_steps": 120,
        "train_loss": 1.8421,
        "train_mean_token_accuracy": 0.612,
        "learning_rate": 0.0001934,
        "grad_norm": 1.07,
        "tokens_per_second": 462.1,
        "memory_bytes": 912680550,
    },
}


class EventObject(IdentifiedBody):
    """Something that happened to a job."""

    model_config = ConfigDict(json_schema_extra={"examples": [EVENT_EXAMPLE]})

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: EventLevel
    message: str
    type: EventType
    data: dict[str, Any] | None = Field(
        description="The numbers of a `metrics` event: step, total_steps, train_loss, train_mean_token_accuracy, "
        "valid_loss, learning_rate, grad_norm, tokens_per_second, memory_bytes."
    )


class CheckpointMetrics(ResponseBody):
    """The numbers at a checkpoint; null where they were not measured there."""

    step: int
    train_loss: float | None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class CheckpointObject(IdentifiedBody):
    """A point the job can go on from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "ftckpt_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "object": "fine_tuning.job.checkpoint",
                    "created_at": 1795219260,
                    "fine_tuned_model_checkpoint": "ft:smollm2-135m-instruct:9x1yb000:support:w2n8v4k7:ckpt-step-60",
                    "fine_tuning_job_id": "ftjob-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "step_number": 60,
                    "metrics": {
                        "step": 60,
                        "train_loss": 0.41,
                        "train_mean_token_accuracy": None,
                        "valid_loss": 0.52,
                        "valid_mean_token_accuracy": 0.86,
                        "full_valid_loss": None,
                        "full_valid_mean_token_accuracy": None,
                    },
                    "bytes": 29491200,
                    "published": False,
                }
            ]
        }
    )

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    bytes: int | None = Field(description="Size of its archive; null once it is gone.")
    published: bool = Field(description="Whether `fine_tuned_model_checkpoint` is a model; publishing makes it one.")


class ArtifactObject(IdentifiedBody):
    """Something a job published."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "artifact_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                    "object": "fine_tuning.job.artifact",
                    "created_at": 1795219320,
                    "name": "adapter.zip",
                    "bytes": 19713244,
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "url": "/v1/fine_tuning/jobs/ftjob-01JDZ5T0Q6W2N8V4K7R3M9X1YB/artifacts/adapter.zip",
                }
            ]
        }
    )

    object: Literal["fine_tuning.job.artifact"] = "fine_tuning.job.artifact"
    created_at: int
    name: str = Field(description="`adapter.zip` comes first; `metrics.csv`, `samples.json` and `plan.json` follow.")
    bytes: int
    sha256: str
    url: str = Field(description="Where it is downloaded, on this service.")


def show_event(event: JobEvent) -> EventObject:
    """An event as the wire shows it."""
    return EventObject(
        id=event.id,
        created_at=unix_seconds(event.created_at),
        level=EventLevel(event.level),
        message=event.message,
        type=EventType(event.type),
        data=event.data,
    )


def show_checkpoint(job: Job, published: Collection[str], checkpoint: Checkpoint) -> CheckpointObject:
    """A checkpoint of a job as the wire shows it. `published`: ids of those that are models."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=unix_seconds(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint_model_name(job, checkpoint),
        fine_tuning_job_id=job.id,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(
            step=checkpoint.step,
            train_loss=checkpoint.metrics.get("train_loss"),
            train_mean_token_accuracy=checkpoint.metrics.get("train_mean_token_accuracy"),
            valid_loss=checkpoint.metrics.get("valid_loss"),
            valid_mean_token_accuracy=checkpoint.metrics.get("valid_mean_token_accuracy"),
        ),
        bytes=checkpoint.size_bytes if checkpoint.storage_key else None,
        published=checkpoint.id in published,
    )


def show_artifact(artifact: JobArtifact) -> ArtifactObject:
    """An artifact as the wire shows it."""
    return ArtifactObject(
        id=artifact.id,
        created_at=unix_seconds(artifact.created_at),
        name=artifact.name,
        bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        url=f"/v1/fine_tuning/jobs/{artifact.job_id}/artifacts/{quote(artifact.name)}",
    )
