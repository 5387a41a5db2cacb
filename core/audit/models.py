"""Table of the audit log. The database itself refuses changes, and the deletion of what is younger than 30 days."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from core.acting import ActorKind
from core.db.base import Base, EnumText, Id, utc_now


class AuditType(StrEnum):
    """What was done: OpenAI's names where it has one."""

    LOGIN_SUCCEEDED = "login.succeeded"
    LOGIN_FAILED = "login.failed"
    LOGOUT_SUCCEEDED = "logout.succeeded"
    SIGN_IN_LINK_CREATED = "sign_in_link.created"
    USER_ADDED = "user.added"
    USER_UPDATED = "user.updated"
    RATE_LIMIT_UPDATED = "rate_limit.updated"
    API_KEY_CREATED = "api_key.created"
    API_KEY_DELETED = "api_key.deleted"
    HUB_TOKEN_UPDATED = "hub_token.updated"  # noqa: S105 - its name, no token
    HUB_TOKEN_DELETED = "hub_token.deleted"  # noqa: S105 - its name, no token
    FILE_CREATED = "file.created"
    FILE_DOWNLOADED = "file.downloaded"
    FILE_DELETED = "file.deleted"
    JOB_CREATED = "fine_tuning.job.created"
    JOB_CANCELLED = "fine_tuning.job.cancelled"
    JOB_PAUSED = "fine_tuning.job.paused"
    JOB_RESUMED = "fine_tuning.job.resumed"
    JOB_DELETED = "fine_tuning.job.deleted"
    ARTIFACT_DOWNLOADED = "fine_tuning.artifact.downloaded"
    CHECKPOINT_DOWNLOADED = "fine_tuning.checkpoint.downloaded"
    CHECKPOINT_PUBLISHED = "fine_tuning.checkpoint.published"
    MODEL_DELETED = "model.deleted"
    CREDIT_CODE_CREATED = "credit_code.created"
    CREDIT_CODE_DISABLED = "credit_code.disabled"
    CREDIT_CODE_ENABLED = "credit_code.enabled"
    CREDIT_CODE_REDEEMED = "credit_code.redeemed"
    CREDITS_REFUNDED = "credits.refunded"
    WORKER_DRAINED = "worker.drained"
    WORKER_STARTED = "worker.started"


class AuditLog(Base):
    """One deed. What it says of its actor stays as it was then, whatever becomes of them."""

    __tablename__ = "audit_logs"
    __table_args__ = (
        Index("ix_audit_logs_organization_id_id", "organization_id", "id"),
        Index("ix_audit_logs_effective_at", "effective_at"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    type: Mapped[AuditType] = mapped_column(EnumText(AuditType, 60))
    effective_at: Mapped[datetime] = mapped_column(default=utc_now)
    organization_id: Mapped[str | None] = mapped_column(Id)  # whose object it is; None: the installation's
    object_id: Mapped[str | None] = mapped_column(String(500))
    details: Mapped[dict[str, Any] | None]
    actor_kind: Mapped[ActorKind] = mapped_column(EnumText(ActorKind, 20))
    actor_user_id: Mapped[str | None] = mapped_column(Id)
    actor_email: Mapped[str | None] = mapped_column(String(320))
    actor_key_id: Mapped[str | None] = mapped_column(Id)
    actor_key_prefix: Mapped[str | None] = mapped_column(String(20))
    address: Mapped[str | None] = mapped_column(String(64))
