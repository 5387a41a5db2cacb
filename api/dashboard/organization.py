"""The audit log for administrators, and what the organization used, month by month."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Query, Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from core.audit import service as audit
from core.audit.models import AuditType
from core.audit.queries import AuditFilter
from core.runtime import Runtime
from core.usage import service as usage
from core.usage.queries import Span
from core.usage.service import Usage, Width

PAGE = 50
MONTHS = 12

router = page_router()


@router.get("/audit", dependencies=[Depends(authenticate_admin)])
def show_audit(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    what: Annotated[AuditType | None, Query(alias="type")] = None,
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Who did what to which object of which organization."""
    wanted = AuditFilter(types=[what] if what is not None else [])
    with runtime.database.read() as session:
        page = audit.list_audit_logs(session, wanted, after=after, limit=PAGE)
    return show(
        request,
        runtime,
        actor,
        "audit.html",
        current="audit",
        rows=page.rows,
        types=list(AuditType),
        chosen=what,
        older=page.rows[-1].id if page.has_more else None,
    )


@router.get("/usage")
def show_usage(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """What was used in each of the last twelve months, from the first in which anything was."""
    months = _months(runtime, actor.organization_id)
    since = next((n for n, month in enumerate(months) if month.jobs or month.storage_bytes), MONTHS - 1)
    return show(request, runtime, actor, "usage.html", current="credits", rows=months[since:][::-1])


@router.get("/usage.csv")
def download_usage(runtime: RuntimeDep, actor: ActorDep) -> Response:
    """The same as a table for programs."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(
        ["month", "jobs", "trained_tokens", "device_seconds", "charged_credits", "refunded_credits", "storage_bytes"]
    )
    for row in _months(runtime, actor.organization_id):
        numbers = [row.jobs, row.trained_tokens, round(row.device_seconds, 3)]
        credits_moved = [row.charged_credits, row.refunded_credits, row.storage_bytes]
        table.writerow([f"{row.start:%Y-%m}", *numbers, *credits_moved])
    headers = {"content-disposition": 'attachment; filename="usage.csv"'}
    return Response(written.getvalue(), media_type="text/csv", headers=headers)


def _months(runtime: Runtime, organization_id: str) -> list[Usage]:
    end = datetime.now(UTC) + timedelta(seconds=1)
    start = usage.begin(end, Width.MONTH)
    for _ in range(MONTHS - 1):
        start = usage.begin(start - timedelta(days=1), Width.MONTH)
    with runtime.database.snapshot() as session:
        return usage.report(session, Span(start, end, organization_id), Width.MONTH)
