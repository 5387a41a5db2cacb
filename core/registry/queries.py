"""SQL of fine-tuned models."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.registry.models import FineTunedModel


def model_of(session: Session, organization_id: str, model_id: str) -> FineTunedModel | None:
    """The organization's model with this id, unless deleted."""
    model = session.get(FineTunedModel, model_id)
    if model is None or model.organization_id != organization_id or model.deleted_at is not None:
        return None
    return model


def models_of(session: Session, organization_id: str) -> Sequence[FineTunedModel]:
    """All models of an organization, newest first."""
    return session.scalars(
        select(FineTunedModel)
        .where(FineTunedModel.organization_id == organization_id, FineTunedModel.deleted_at.is_(None))
        .order_by(FineTunedModel.created_at.desc(), FineTunedModel.id.desc())
    ).all()
