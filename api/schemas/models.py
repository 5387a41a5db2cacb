"""Base models and one's own fine-tuned ones."""

from typing import Literal

from pydantic import ConfigDict

from api.schemas.base import ResponseBody, unix_seconds
from core.registry.service import ModelEntry


class ModelObject(ResponseBody):
    """A model that can be tuned, or that came out of a job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "smollm2-135m-instruct", "object": "model", "created": 1767225600, "owned_by": "catalogue"}
            ]
        }
    )

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


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


def show_model(entry: ModelEntry) -> ModelObject:
    """A model as the wire shows it."""
    return ModelObject(id=entry.id, created=unix_seconds(entry.created_at), owned_by=entry.owned_by)
