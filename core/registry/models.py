"""Table of fine-tuned models."""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Id, utc_now


class FineTunedModel(Base):
    """A model that a job made, under the id clients use: `ft:{base}:{org}:{suffix}:{id}`.

    One that was published from a checkpoint has its step behind it: `…:ckpt-step-{step}`.
    """

    __tablename__ = "fine_tuned_models"
    __table_args__ = (Index("ix_fine_tuned_models_organization_id_created_at", "organization_id", "created_at"),)

    id: Mapped[str] = mapped_column(String(500), primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(Id)  # None: what the job itself published
    base_model: Mapped[str] = mapped_column(String(300))
    valid_loss: Mapped[float | None] = mapped_column(Float)  # on the held-out rows
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    deleted_at: Mapped[datetime | None]
