"""What happened in an organization, and what it used."""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from api.deps import ActorDep, PageDep, RuntimeDep
from api.schemas.base import LATEST_SECONDS, from_unix_seconds
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.lists import ListObject, list_of
from api.schemas.organization import (
    AuditLogObject,
    CostsPage,
    UsagePage,
    show_audit_log,
    show_costs,
    show_usage,
)
from core.accounts.models import Scope
from core.accounts.service import Actor
from core.audit import service as audit
from core.audit.models import AuditType
from core.audit.queries import AuditFilter
from core.errors import InvalidRequestError
from core.usage import service as usage
from core.usage.queries import Span
from core.usage.service import CostGroup, Width

router = APIRouter(prefix="/v1/organization", tags=["Organization"])

MOST_BUCKETS, MOST_COST_BUCKETS = 366, 180


Named = Annotated[str, Field(max_length=320)]  # an id or an e-mail address
Types = Annotated[list[AuditType] | None, Query(alias="event_types[]", max_length=100, description="Only these.")]
Users = Annotated[list[Named] | None, Query(alias="actor_ids[]", max_length=100, description="Only by these users.")]
Emails = Annotated[
    list[Named] | None, Query(alias="actor_emails[]", max_length=100, description="Only by these users.")
]
Objects = Annotated[
    list[Named] | None, Query(alias="resource_ids[]", max_length=100, description="Only to these objects.")
]


def _moment(bound: str, means: str) -> Any:
    return Query(alias=f"effective_at[{bound}]", ge=0, lt=LATEST_SECONDS, description=f"Unix seconds; {means}.")


After = Annotated[int | None, _moment("gt", "after then")]
NotBefore = Annotated[int | None, _moment("gte", "not before then")]
Before = Annotated[int | None, _moment("lt", "before then")]
NotAfter = Annotated[int | None, _moment("lte", "not after then")]


def audit_filter(
    actor: ActorDep,
    types: Types = None,
    actor_ids: Users = None,
    actor_emails: Emails = None,
    resource_ids: Objects = None,
    after_moment: After = None,
    not_before: NotBefore = None,
    before_moment: Before = None,
    not_after: NotAfter = None,
) -> AuditFilter:
    """What a request asks for, of what the caller may see: an administrator the whole installation's.

    The wire tells whole seconds, so what happens within one is neither before nor after it.
    """
    first = [not_before, None if after_moment is None else after_moment + 1]
    end = [before_moment, None if not_after is None else not_after + 1]
    return AuditFilter(
        organization_id=None if actor.scope.includes(Scope.ADMIN) else actor.organization_id,
        types=types or (),
        user_ids=actor_ids or (),
        emails=actor_emails or (),
        object_ids=resource_ids or (),
        since=from_unix_seconds(max((one for one in first if one is not None), default=None)),
        before=from_unix_seconds(min((one for one in end if one is not None), default=None)),
    )


@router.get("/audit_logs", summary="List audit logs", responses=errors(*SIGNED_IN, "request_head_too_large"))
def list_audit_logs(
    runtime: RuntimeDep,
    page: PageDep,
    wanted: Annotated[AuditFilter, Depends(audit_filter)],
    before: Annotated[
        str | None, Query(max_length=500, description="Id of the first object of the page behind, instead of `after`.")
    ] = None,
) -> ListObject[AuditLogObject]:
    """Who did what to which object of the organization, newest first; with the scope `admin`, of every organization."""
    with runtime.database.read() as session:
        found = audit.list_audit_logs(session, wanted, after=page.after, before=before, limit=page.limit)
        return list_of(found, show_audit_log)


@dataclass(frozen=True)
class Buckets:
    """The stretches of time that a request asks for: each one's beginning, the end of the last, and the next page."""

    span: Span
    starts: list[datetime]
    next_page: str | None


Start = Annotated[
    int | None, Query(ge=0, le=LATEST_SECONDS, description="Unix seconds; else the beginning of this month.")
]
End = Annotated[int | None, Query(ge=0, le=LATEST_SECONDS, description="Unix seconds; else now.")]
NextPage = Annotated[int | None, Query(ge=0, le=LATEST_SECONDS, description="`next_page` of the page before.")]


@router.get("/usage/fine_tuning", summary="Retrieve usage", responses=errors(*SIGNED_IN, "request_head_too_large"))
def retrieve_fine_tuning_usage(
    runtime: RuntimeDep,
    actor: ActorDep,
    start_time: Start = None,
    end_time: End = None,
    bucket_width: Annotated[Width, Query(description="`1d` or `1mo`; both begin at midnight UTC.")] = Width.DAY,
    limit: Annotated[int, Query(ge=1, le=MOST_BUCKETS, description="How many buckets at most.")] = 31,
    page: NextPage = None,
) -> UsagePage:
    """What the organization used, by day or month. The credits are the ledger's."""
    buckets = _buckets(actor, start_time, end_time, page, bucket_width, limit)
    with runtime.database.snapshot() as session:
        rows = usage.report(session, buckets.span, bucket_width)
    return show_usage(rows, buckets.starts, buckets.next_page)


@router.get("/costs", summary="Retrieve costs", responses=errors(*SIGNED_IN, "request_head_too_large"))
def retrieve_costs(
    runtime: RuntimeDep,
    actor: ActorDep,
    start_time: Start = None,
    end_time: End = None,
    bucket_width: Annotated[Literal["1d"], Query(description="A day, which begins at midnight UTC.")] = "1d",
    group_by: Annotated[
        list[CostGroup] | None,
        Query(
            alias="group_by[]", max_length=10, description="Tell costs apart by what they are for, or who made the job."
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_COST_BUCKETS, description="How many days at most.")] = 7,
    page: NextPage = None,
) -> CostsPage:
    """What the organization was charged day by day, less what it was given back: the ledger's entries, in credits."""
    buckets = _buckets(actor, start_time, end_time, page, Width(bucket_width), limit)
    with runtime.database.snapshot() as session:
        found = usage.costs(session, buckets.span, group_by or ())
    return show_costs(found, buckets.starts, buckets.span.end, buckets.next_page)


def _buckets(
    actor: Actor, start_time: int | None, end_time: int | None, page: int | None, width: Width, limit: int
) -> Buckets:
    """Raises InvalidRequestError for an end before the start."""
    now = datetime.now(UTC)
    start = from_unix_seconds(page if page is not None else start_time) or usage.begin(now, Width.MONTH)
    end = min(from_unix_seconds(end_time) or now, now)
    if start_time is not None and end_time is not None and end_time <= start_time:
        raise InvalidRequestError("end_time must be after start_time.", param="end_time")
    starts = list(islice(usage.steps(start, end, width), limit + 1))
    next_start = starts[limit] if len(starts) > limit else None
    return Buckets(
        span=Span(start, max(start, next_start or end), actor.organization_id),
        starts=starts[:limit],
        next_page=str(int(next_start.timestamp())) if next_start is not None else None,
    )
