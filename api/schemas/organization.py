"""The audit log and the usage report, in OpenAI's shapes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas.base import IdentifiedBody, ResponseBody, unix_seconds
from core.acting import ActorKind
from core.audit.models import AuditLog
from core.usage import service as usage
from core.usage.service import Cost, Usage, Width

_ID = "01JDZ5T0Q6W2N8V4K7R3M9X1YB"
_USER: JsonDict = {"id": f"user-{_ID}", "email": "ada@example.org"}


class AuditUser(ResponseBody):
    """A person, as they were then."""

    id: str | None
    email: str | None


class AuditSession(ResponseBody):
    """A browser that somebody was signed in with."""

    user: AuditUser
    ip_address: str | None


class AuditKey(ResponseBody):
    """An API key and whose it was."""

    id: str | None
    type: Literal["user"] = "user"
    prefix: str | None = Field(description="What lists show of the key.")
    user: AuditUser


class AuditActor(ResponseBody):
    """Who did it."""

    type: ActorKind = Field(description="`command_line`: on the service's machine. `system`: the service itself.")
    session: AuditSession | None
    api_key: AuditKey | None
    name: str | None = Field(description="On the command line: the operating system's user.")


class AuditLogObject(IdentifiedBody):
    """One deed. What there is to say of its object stands in the field that is named like its type."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "id": f"audit_log-{_ID}",
                    "object": "organization.audit_log",
                    "type": "api_key.created",
                    "effective_at": 1795219200,
                    "organization_id": f"org-{_ID}",
                    "actor": {
                        "type": "session",
                        "session": {"user": _USER, "ip_address": "203.0.113.7"},
                        "api_key": None,
                        "name": None,
                    },
                    "api_key.created": {"id": f"key_{_ID}", "name": "laptop", "prefix": "tw-Qm3xT1", "scope": "write"},
                }
            ]
        },
    )

    object: Literal["organization.audit_log"] = "organization.audit_log"
    type: str
    effective_at: int
    organization_id: str | None = Field(description="Whose object it is; null where it is the installation's.")
    actor: AuditActor


def show_audit_log(row: AuditLog) -> AuditLogObject:
    """A row of the log as the wire shows it."""
    subject: dict[str, Any] = {row.type.value: {"id": row.object_id, **(row.details or {})}}
    return AuditLogObject(
        id=row.id,
        type=row.type.value,
        effective_at=unix_seconds(row.effective_at),
        organization_id=row.organization_id,
        actor=_actor(row),
        **subject,
    )


def _actor(row: AuditLog) -> AuditActor:
    user = AuditUser(id=row.actor_user_id, email=row.actor_email)
    is_session, is_key = row.actor_kind is ActorKind.SESSION, row.actor_kind is ActorKind.API_KEY
    return AuditActor(
        type=row.actor_kind,
        session=AuditSession(user=user, ip_address=row.address) if is_session else None,
        api_key=AuditKey(id=row.actor_key_id, prefix=row.actor_key_prefix, user=user) if is_key else None,
        name=row.actor_email if row.actor_kind is ActorKind.COMMAND_LINE else None,
    )


class FineTuningUsage(ResponseBody):
    """What was used in a bucket."""

    object: Literal["organization.usage.fine_tuning.result"] = "organization.usage.fine_tuning.result"
    organization_id: str
    num_jobs: int = Field(description="Jobs that ended, whichever way.")
    trained_tokens: int
    device_seconds: float = Field(description="Device time that is charged.")
    charged_credits: int = Field(description="As the ledger has them.")
    refunded_credits: int = Field(description="Given back of charges, in this bucket or an earlier one.")
    storage_bytes: int = Field(description="The most on any day: files, artifacts and kept checkpoints.")


class UsageBucket(ResponseBody):
    """A stretch of time and what was used in it."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[FineTuningUsage]


class UsagePage(ResponseBody):
    """A page of buckets, oldest first. Ask for the next with `page` set to `next_page`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "page",
                    "data": [
                        {
                            "object": "bucket",
                            "start_time": 1795219200,
                            "end_time": 1795305600,
                            "results": [
                                {
                                    "object": "organization.usage.fine_tuning.result",
                                    "organization_id": f"org-{_ID}",
                                    "num_jobs": 3,
                                    "trained_tokens": 181240,
                                    "device_seconds": 412.6,
                                    "charged_credits": 71,
                                    "refunded_credits": 0,
                                    "storage_bytes": 48210331,
                                }
                            ],
                        }
                    ],
                    "has_more": False,
                    "next_page": None,
                }
            ]
        }
    )

    object: Literal["page"] = "page"
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None


def show_usage(rows: list[Usage], starts: list[datetime], next_page: str | None) -> UsagePage:
    """The report's rows as buckets."""
    buckets = []
    for start in starts:
        of_bucket = [row for row in rows if row.start == start]
        end = of_bucket[0].end if of_bucket else start
        results = [_show(row) for row in of_bucket if not row.is_empty]
        buckets.append(UsageBucket(start_time=unix_seconds(start), end_time=unix_seconds(end), results=results))
    return UsagePage(data=buckets, has_more=next_page is not None, next_page=next_page)


def _show(row: Usage) -> FineTuningUsage:
    return FineTuningUsage(
        organization_id=row.organization_id,
        num_jobs=row.jobs,
        trained_tokens=row.trained_tokens,
        device_seconds=round(row.device_seconds, 3),
        charged_credits=row.charged_credits,
        refunded_credits=row.refunded_credits,
        storage_bytes=row.storage_bytes,
    )


class CostAmount(ResponseBody):
    """How much it was."""

    value: int = Field(description="Credits; below zero where more was given back than charged.")
    currency: Literal["credits"] = "credits"


class CostResult(ResponseBody):
    """What was charged, less what was given back."""

    object: Literal["organization.costs.result"] = "organization.costs.result"
    amount: CostAmount
    line_item: str | None = Field(
        description="The base model and what was done with it, where costs are grouped by it."
    )
    user_id: str | None = Field(description="Who made the job, where costs are grouped by that.")
    project_id: None = Field(description="An organization has no projects.")
    api_key_id: None = Field(description="Costs are not told apart by key.")


class CostBucket(ResponseBody):
    """A day and what was charged on it."""

    object: Literal["bucket"] = "bucket"
    start_time: int
    end_time: int
    results: list[CostResult]


class CostsPage(ResponseBody):
    """A page of days, oldest first. Ask for the next with `page` set to `next_page`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "page",
                    "data": [
                        {
                            "object": "bucket",
                            "start_time": 1795219200,
                            "end_time": 1795305600,
                            "results": [
                                {
                                    "object": "organization.costs.result",
                                    "amount": {"value": 71, "currency": "credits"},
                                    "line_item": "smollm2-135m-instruct, fine-tuning",
                                    "user_id": None,
                                    "project_id": None,
                                    "api_key_id": None,
                                }
                            ],
                        }
                    ],
                    "has_more": False,
                    "next_page": None,
                }
            ]
        }
    )

    object: Literal["page"] = "page"
    data: list[CostBucket]
    has_more: bool
    next_page: str | None


def show_costs(costs: list[Cost], starts: list[datetime], end: datetime, next_page: str | None) -> CostsPage:
    """The costs as buckets, of which the last ends with what was asked for."""
    buckets = [
        CostBucket(
            start_time=unix_seconds(start),
            end_time=unix_seconds(min(usage.after(start, Width.DAY), end)),
            results=[_show_cost(cost) for cost in costs if cost.start == start],
        )
        for start in starts
    ]
    return CostsPage(data=buckets, has_more=next_page is not None, next_page=next_page)


def _show_cost(cost: Cost) -> CostResult:
    return CostResult(
        amount=CostAmount(value=cost.credits),
        line_item=cost.line_item,
        user_id=cost.user_id,
        project_id=None,
        api_key_id=None,
    )
