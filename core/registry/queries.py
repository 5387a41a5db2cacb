"""SQL of fine-tuned models."""

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, String, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.db.keyset import Order, known_first, sorted_page
from core.paging import Page
from core.registry.models import FineTunedModel


class ModelSort(StrEnum):
    """What a list of models is sorted by."""

    MADE = "made"
    NAME = "name"
    BASE = "base"
    LOSS = "loss"  # on the held-out rows


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


def search(
    session: Session,
    organization_id: str,
    *,
    text: str,
    base_model: str | None,
    sort: ModelSort,
    is_descending: bool,
    after: str | None,
    limit: int,
) -> Page[FineTunedModel]:
    """A sorted page of the organization's models whose id holds every word of the text."""
    query = (
        select(FineTunedModel)
        .where(FineTunedModel.organization_id == organization_id, FineTunedModel.deleted_at.is_(None))
        .where(*(FineTunedModel.id.icontains(word, autoescape=True) for word in text.split()))
    )
    if base_model is not None:
        query = query.where(FineTunedModel.base_model == base_model)
    order = Order(_sorted_by(sort, is_descending=is_descending), is_descending)
    return sorted_page(session, query, FineTunedModel.id, order, after=after, limit=limit)


def _sorted_by(sort: ModelSort, *, is_descending: bool) -> ColumnElement[Any] | InstrumentedAttribute[Any]:
    match sort:
        case ModelSort.MADE:
            return FineTunedModel.created_at
        case ModelSort.NAME:
            return func.lower(FineTunedModel.id, type_=String())
        case ModelSort.BASE:
            return func.lower(FineTunedModel.base_model, type_=String())
        case ModelSort.LOSS:
            return known_first(FineTunedModel.valid_loss, is_descending=is_descending)


def base_models_of(session: Session, organization_id: str) -> Sequence[str]:
    """The base models that the organization's models were made from, by name."""
    query = select(FineTunedModel.base_model).where(
        FineTunedModel.organization_id == organization_id, FineTunedModel.deleted_at.is_(None)
    )
    return session.scalars(query.distinct().order_by(FineTunedModel.base_model)).all()


def checkpoint_models(session: Session, job_ids: Collection[str]) -> dict[str, str]:
    """The ids of the models that were published from checkpoints of these jobs, by checkpoint."""
    query = select(FineTunedModel.checkpoint_id, FineTunedModel.id).where(
        FineTunedModel.job_id.in_(job_ids),
        FineTunedModel.checkpoint_id.is_not(None),
        FineTunedModel.deleted_at.is_(None),
    )
    return {str(checkpoint_id): model_id for checkpoint_id, model_id in session.execute(query)}


def made_before(session: Session, moment: datetime, limit: int) -> Sequence[FineTunedModel]:
    """The oldest models from before then that nobody has deleted."""
    query = select(FineTunedModel).where(FineTunedModel.created_at < moment, FineTunedModel.deleted_at.is_(None))
    return session.scalars(query.order_by(FineTunedModel.created_at).limit(limit)).all()


def delete_of_job(session: Session, job_id: str) -> None:
    """Drop the rows of the models that a job made."""
    session.execute(delete(FineTunedModel).where(FineTunedModel.job_id == job_id))
