"""What happened in an organization, and what it used."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from api.deps import ActorDep, PageDep, RuntimeDep
from api.schemas.base import LATEST_SECONDS, from_unix_seconds
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.lists import ListObject, list_of
from api.schemas.organization import AuditLogObject, UsagePage, show_audit_log, show_usage
from core.accounts.models import Scope
from core.audit import service as audit
from core.audit.models import AuditType
from core.audit.queries import AuditFilter
from core.errors import InvalidRequestError
from core.usage import service as usage
from core.usage.queries import Span
from core.usage.service import Width

router = APIRouter(prefix="/v1/organization", tags=["Organization"])

MOST_BUCKETS = 366


Named = Annotated[str, Field(max_length=320)]  # an id or an e-mail address
Types = Annotated[list[AuditType] | None, Query(alias="event_types[]", max_length=100, description="Only these.")]
Users = Annotated[list[Named] | None, Query(alias="actor_ids[]", max_length=100, description="Only by these users.")]
Emails = Annotated[
    list[Named] | None, Query(alias="actor_emails[]", max_length=100, description="Only by these users.")
]
Objects = Annotated[
    list[Named] | None, Query(alias="resource_ids[]", max_length=100, description="Only to these objects.")
]
Since = Annotated[
    int | None, Query(alias="effective_at[gte]", ge=0, le=LATEST_SECONDS, description="Unix seconds; not before then.")
]
Before = Annotated[
    int | None, Query(alias="effective_at[lt]", ge=0, le=LATEST_SECONDS, description="Unix seconds; before then.")
]


def audit_filter(
    actor: ActorDep,
    types: Types = None,
    actor_ids: Users = None,
    actor_emails: Emails = None,
    resource_ids: Objects = None,
    since: Since = None,
    before: Before = None,
) -> AuditFilter:
    """What a request asks for, of what the caller may see: an administrator the whole installation's."""
    return AuditFilter(
        organization_id=None if actor.scope.includes(Scope.ADMIN) else actor.organization_id,
        types=types or (),
        user_ids=actor_ids or (),
        emails=actor_emails or (),
        object_ids=resource_ids or (),
        since=from_unix_seconds(since),
        before=from_unix_seconds(before),
    )


@router.get("/audit_logs", summary="List audit logs", responses=errors(*SIGNED_IN))
def list_audit_logs(
    runtime: RuntimeDep, page: PageDep, wanted: Annotated[AuditFilter, Depends(audit_filter)]
) -> ListObject[AuditLogObject]:
    """Who did what to which object of the organization, newest first; with the scope `admin`, of every organization."""
    with runtime.database.read() as session:
        return list_of(audit.list_audit_logs(session, wanted, after=page.after, limit=page.limit), show_audit_log)


@router.get("/usage/fine_tuning", summary="Retrieve usage", responses=errors(*SIGNED_IN))
def retrieve_fine_tuning_usage(
    runtime: RuntimeDep,
    actor: ActorDep,
    start_time: Annotated[
        int | None, Query(ge=0, le=LATEST_SECONDS, description="Unix seconds; else the beginning of this month.")
    ] = None,
    end_time: Annotated[int | None, Query(ge=0, le=LATEST_SECONDS, description="Unix seconds; else now.")] = None,
    bucket_width: Annotated[Width, Query(description="`1d` or `1mo`; both begin at midnight UTC.")] = Width.DAY,
    limit: Annotated[int, Query(ge=1, le=MOST_BUCKETS, description="How many buckets at most.")] = 31,
    page: Annotated[int | None, Query(ge=0, le=LATEST_SECONDS, description="`next_page` of the page before.")] = None,
) -> UsagePage:
    """What the organization used, by day or month. The credits are the ledger's."""
    now = datetime.now(UTC)
    start = from_unix_seconds(page if page is not None else start_time) or usage.begin(now, Width.MONTH)
    end = min(from_unix_seconds(end_time) or now, now)
    if start_time is not None and end_time is not None and end_time <= start_time:
        raise InvalidRequestError("end_time must be after start_time.", param="end_time")
    starts, next_page = _window(start, end, bucket_width, limit)
    last = next_page if next_page is not None else end
    with runtime.database.snapshot() as session:
        rows = usage.report(session, Span(start, max(start, last), actor.organization_id), bucket_width)
    return show_usage(rows, starts, str(int(next_page.timestamp())) if next_page is not None else None)


def _window(start: datetime, end: datetime, width: Width, limit: int) -> tuple[list[datetime], datetime | None]:
    starts: list[datetime] = []
    for one in usage.steps(start, end, width):
        if len(starts) == limit:
            return starts, one
        starts.append(one)
    return starts, None
