"""Base models and one's own fine-tuned ones."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import ResponseBody, unix_seconds, unix_seconds_or_none
from core.registry.choices import Availability, ModelChoice
from core.registry.service import ModelEntry
from planner.setup import Method


class Fit(ResponseBody):
    """The best that the devices here can do with a base model."""

    method: Method
    max_length: int = Field(description="The longest rows, in tokens, that fit the memory.")
    estimated_seconds: float = Field(description="Predicted for a small job: 500 examples of 256 tokens, 3 epochs.")
    is_useful: bool = Field(
        description="Whether that job ends within twelve hours; what fits the memory may take weeks."
    )


class BaseModelDetails(ResponseBody):
    """What to know of a base model before one chooses it."""

    hub_id: str | None
    parameters: int | None
    context_length: int | None = Field(description="Tokens.")
    availability: Availability = Field(
        description="`local`: on this machine. `downloadable`: fetched when a job first needs it. `gated`: the hub "
        "wants its licence to be accepted first. `unreachable`: the hub does not answer, or may not be asked."
    )
    problem: str | None = Field(description="Why it cannot be had now, and what to do.")
    download_bytes: int | None = Field(description="About what will be fetched; null where nothing is.")
    fits: Fit | None = Field(description="Null where nothing fits, or where no device has reported yet.")


class ModelObject(ResponseBody):
    """A model that can be tuned, or that came out of a job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "smollm2-135m-instruct",
                    "object": "model",
                    "created": 1767225600,
                    "owned_by": "catalogue",
                    "base": {
                        "hub_id": "HuggingFaceTB/SmolLM2-135M-Instruct",
                        "parameters": 134515008,
                        "context_length": 8192,
                        "availability": "downloadable",
                        "problem": None,
                        "download_bytes": 269030016,
                        "fits": {"method": "full", "max_length": 8192, "estimated_seconds": 95.0, "is_useful": True},
                    },
                }
            ]
        }
    )

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    expires_at: int | None = Field(None, description="Kept until then; null: until it is deleted, or a base model.")
    base: BaseModelDetails | None = Field(default=None, description="Of a base model; null for a fine-tuned one.")


class ModelList(ResponseBody):
    """Every model; this list has no pages."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(ResponseBody):
    """The model is gone from the list; its job and artifacts stay."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "ft:smollm2-135m-instruct:9x1yb000:support:w2n8v4k7", "object": "model", "deleted": True}
            ]
        }
    )

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


def show_model(entry: ModelEntry, choice: ModelChoice | None = None, expires_at: datetime | None = None) -> ModelObject:
    """A model as the wire shows it. `choice`: what is known of a base model."""
    return ModelObject(
        id=entry.id,
        created=unix_seconds(entry.created_at),
        owned_by=entry.owned_by,
        expires_at=unix_seconds_or_none(expires_at),
        base=None if choice is None else _details(choice),
    )


def _details(choice: ModelChoice) -> BaseModelDetails:
    fits = choice.longest_context
    return BaseModelDetails(
        hub_id=choice.hub_id,
        parameters=choice.parameters,
        context_length=choice.context,
        availability=choice.availability,
        problem=choice.problem,
        download_bytes=choice.download_bytes,
        fits=fits
        and Fit(
            method=fits.method,
            max_length=fits.max_length,
            estimated_seconds=round(fits.seconds, 1),
            is_useful=fits.is_useful,
        ),
    )
