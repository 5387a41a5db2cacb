"""Listing, finding and deleting models."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.errors import ModelNotFoundError, PermissionDeniedError
from core.registry import base_models, queries
from core.registry.models import FineTunedModel
from planner import catalogue

CATALOGUE_DATE = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


@dataclass(frozen=True)
class ModelEntry:
    """A model as the wire lists it."""

    id: str
    created_at: datetime
    owned_by: str


def model_entry(row: FineTunedModel) -> ModelEntry:
    """A fine-tuned model as the wire lists it."""
    return ModelEntry(row.id, row.created_at, row.organization_id)


def list_models(session: Session, organization_id: str, models_dir: Path) -> list[ModelEntry]:
    """The organization's fine-tuned models, newest first, then local base models, then the catalogue."""
    tuned = [model_entry(row) for row in queries.models_of(session, organization_id)]
    known = {entry.id for entry in catalogue.models()}
    local = [
        ModelEntry(model_id, CATALOGUE_DATE, "local")
        for model_id in base_models.local_model_ids(models_dir)
        if model_id not in known
    ]
    return tuned + local + [ModelEntry(entry.id, CATALOGUE_DATE, "catalogue") for entry in catalogue.models()]


def get_model(session: Session, organization_id: str, models_dir: Path, model_id: str) -> ModelEntry:
    """One model. Raises ModelNotFoundError."""
    for entry in list_models(session, organization_id, models_dir):
        if entry.id == model_id:
            return entry
    raise ModelNotFoundError(f"The model {model_id!r} does not exist.", param="model")


def delete_model(session: Session, organization_id: str, models_dir: Path, model_id: str) -> None:
    """Delete a fine-tuned model from the list; its job and artifacts stay, a checkpoint no longer than
    the others of its job. Raises ModelNotFoundError."""
    model = queries.model_of(session, organization_id, model_id)
    if model is None:
        get_model(session, organization_id, models_dir, model_id)
        raise PermissionDeniedError(f"{model_id!r} is a base model and cannot be deleted here.", param="model")
    model.deleted_at = utc_now()
    audit.record(session, AuditType.MODEL_DELETED, organization_id=organization_id, object_id=model_id)
