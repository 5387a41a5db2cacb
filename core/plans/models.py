"""Tables of plans, and of the dry runs that some are made from."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, false
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, Id, utc_now
from core.db.claims import Claimable


class Plan(Base):
    """A plan as it was shown, with the request it answers and a quote that stands until `expires_at`."""

    __tablename__ = "plans"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    model: Mapped[str] = mapped_column(String(300))
    model_revision: Mapped[str | None] = mapped_column(String(64))  # of core.registry.base_models.ModelRef
    training_file_id: Mapped[str] = mapped_column(Id)
    validation_file_id: Mapped[str | None] = mapped_column(Id)
    training_sha256: Mapped[str | None] = mapped_column(String(64))  # None: of a version that did not keep it
    validation_sha256: Mapped[str | None] = mapped_column(String(64))
    data_format: Mapped[dict[str, Any]]  # core.datasets.examples.DataFormat
    statistics: Mapped[dict[str, Any]]  # planner.statistics.DatasetStatistics
    plan: Mapped[dict[str, Any]]  # planner.policy.choice.TrainingPlan
    dry_run: Mapped[dict[str, Any] | None]  # planner.memory.dry_run.DryRunMemory, of a model without a formula
    chat_template: Mapped[str | None] = mapped_column(String(40))  # a named one; None: the model's own, or none
    requested: Mapped[
        dict[str, Any] | None
    ]  # planner.options.RequestedConfig: what was asked for, apart from what was planned
    exact_match: Mapped[dict[str, Any] | None]  # core.datasets.final_answers.ExactMatch
    notices: Mapped[list[Any] | None]  # core.datasets.notices.Notice, of the training file
    is_used: Mapped[bool] = mapped_column(default=False, server_default=false())  # a job runs it, or has
    quote_credits: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DryRunRow(Claimable):
    """Training steps that a worker is to dry-run, or has; its id is a hash of the question."""

    __tablename__ = "dry_runs"

    organization_id: Mapped[str | None] = mapped_column(Id)  # who asked first
    question: Mapped[dict[str, Any]]  # planner.memory.dry_run.DryRunQuestion
    memory: Mapped[dict[str, Any] | None]  # planner.memory.dry_run.DryRunMemory
    error: Mapped[dict[str, Any] | None]  # core.errors.ErrorBody
    created_at: Mapped[datetime] = mapped_column(index=True)
    finished_at: Mapped[datetime | None]
