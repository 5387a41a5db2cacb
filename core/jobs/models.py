"""Tables of jobs, and of what became of all of them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from core.db.base import Base, EnumText, Id, utc_now
from core.db.leases import Leasable
from core.jobs.states import JobStatus
from core.plans.models import Plan


class Job(Leasable):
    """One fine-tuning job. Its plan is frozen when it is accepted; its lease says who may write to it."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_organization_id_id", "organization_id", "id"),
        Index("ix_jobs_status_device_class_id", "status", "device_class", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)

    # What was asked for.
    model: Mapped[str] = mapped_column(String(300))
    training_file_id: Mapped[str] = mapped_column(Id)
    validation_file_id: Mapped[str | None] = mapped_column(Id)
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    integrations: Mapped[list[Any] | None]

    # What was decided. `setup` (planner.setup.TrainingSetup) starts as the plan's; only its micro-batch ever changes.
    plan_id: Mapped[str] = mapped_column(ForeignKey("plans.id"), index=True)
    plan: Mapped[Plan] = relationship(lazy="joined", innerjoin=True)
    setup: Mapped[dict[str, Any]]
    device_class: Mapped[str] = mapped_column(String(100))
    device_count: Mapped[int] = mapped_column(default=1, server_default="1")  # of one machine, claimed together
    quote_credits: Mapped[int] = mapped_column(BigInteger)

    # How it goes.
    status: Mapped[JobStatus] = mapped_column(EnumText(JobStatus, 20))
    phase: Mapped[str | None] = mapped_column(String(20))
    step: Mapped[int] = mapped_column(default=0)
    valid_loss: Mapped[float | None] = mapped_column(Float)  # the newest; the published model's at the end
    queued_at: Mapped[datetime | None]  # last; None: of a version that did not keep it
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    estimated_finish_at: Mapped[datetime | None]
    processed_tokens: Mapped[int | None] = mapped_column("trained_tokens", BigInteger)
    used_seconds: Mapped[float] = mapped_column(Float, default=0.0)  # of device time that is charged
    useful_seconds: Mapped[float] = mapped_column(Float, default=0.0, server_default="0.0")  # of it, by the newest step
    repeats_until_step: Mapped[int | None]  # what was lost to the service is done again, and not charged, until then
    learning_rate_factor: Mapped[float] = mapped_column(Float, default=1.0, server_default="1.0")
    step_seconds: Mapped[float | None] = mapped_column(Float)  # of one optimizer step, as measured
    memory_measured: Mapped[dict[str, Any] | None]  # worker.protocol.MemoryReport without its type
    error: Mapped[dict[str, Any] | None]  # core.errors.ErrorBody
    taken_step: Mapped[int | None]  # the newest that its owner took a checkpoint of before the end; not all was paid
    fine_tuned_model: Mapped[str | None] = mapped_column(String(500))
    result_file_id: Mapped[str | None] = mapped_column(Id)
    held_out: Mapped[dict[str, Any] | None]  # core.jobs.evaluation.HeldOut, once its rows are read
    evaluation: Mapped[dict[str, Any] | None]  # core.jobs.evaluation.Evaluation, once it has succeeded
    verdict: Mapped[dict[str, Any] | None]  # core.jobs.verdict.Verdict, once it has succeeded
    charged_credits: Mapped[int | None] = mapped_column(BigInteger)
    deleted_at: Mapped[datetime | None]  # what the books refer to stays; nobody is shown it

    def withholds(self, step: int) -> bool:
        """Whether it failed without a charge for what led to this step: given out, that would be training for free."""
        if self.status is not JobStatus.FAILED or not self.quote_credits:
            return False
        return step > self.taken_step if self.taken_step is not None else not self.charged_credits


class TallyKind(StrEnum):
    """What is counted of all jobs."""

    WAITED = "waited"  # time in the queue, for each claim
    RAN = "ran"  # device time, for each job that ended and had started
    ENDED = "ended"
    LOST_LEASE = "lost_lease"


class JobTally(Base):
    """How often something has happened to jobs, and for times how long it took: a histogram that only grows."""

    __tablename__ = "job_tallies"

    kind: Mapped[TallyKind] = mapped_column(EnumText(TallyKind, 20), primary_key=True)
    method: Mapped[str] = mapped_column(String(20), primary_key=True)  # planner.setup.Method; "": any
    status: Mapped[str] = mapped_column(String(20), primary_key=True)  # JobStatus; "": any
    code: Mapped[str] = mapped_column(String(80), primary_key=True)  # of the error; "": none, or any
    count: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    seconds: Mapped[float] = mapped_column(Float, default=0.0, server_default="0.0")
    buckets: Mapped[list[Any] | None]  # counts, one for each bound of core.jobs.tallies and one above
