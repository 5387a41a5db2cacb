"""`tunewright audit` and `tunewright usage`: what happened and what was used, of every organization."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cli.database import DataDirectory, open_database
from cli.terminal import JsonOption, print_list, table_of
from core.audit.models import AuditType
from core.audit.queries import AuditFilter
from core.audit.service import list_audit_logs
from core.settings_loading import load_settings
from core.usage.queries import Span
from core.usage.service import Width, begin, report

Since = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day on, UTC.")]


def audit(
    types: Annotated[
        list[AuditType] | None, typer.Option("--type", help="Only deeds of this type; may repeat.")
    ] = None,
    organization: Annotated[str | None, typer.Option(help="Only to objects of this organization.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")] = 100,
    as_json: JsonOption = False,
    data: DataDirectory = None,
) -> None:
    """List who did what to which object, newest first."""
    wanted = AuditFilter(organization_id=organization, types=types or [], since=_utc(since))
    table, rows = table_of("When", "What", "Who", "From", "Object"), []
    with open_database(load_settings(data)) as database, database.read() as session:
        for log in list_audit_logs(session, wanted, after=None, limit=limit).rows:
            rows.append(
                {
                    "id": log.id,
                    "effective_at": log.effective_at,
                    "type": log.type,
                    "organization": log.organization_id,
                    "object": log.object_id,
                    "details": log.details,
                    "actor": log.actor_kind,
                    "user": log.actor_user_id,
                    "name": log.actor_email,
                    "key": log.actor_key_id,
                    "key_prefix": log.actor_key_prefix,
                    "address": log.address,
                }
            )
            who = log.actor_email or log.actor_user_id or log.actor_kind.value
            table.add_row(
                f"{log.effective_at:%Y-%m-%d %H:%M:%S}", log.type, who, log.address or "", log.object_id or ""
            )
    print_list(table, rows, as_json, empty="Nothing was done yet.")


def usage(
    since: Since = None,
    organization: Annotated[str | None, typer.Option(help="Only of this organization.")] = None,
    as_json: JsonOption = False,
    data: DataDirectory = None,
) -> None:
    """List what each organization used, by month: jobs, tokens, device time, credits and storage."""
    end = datetime.now(UTC) + timedelta(seconds=1)
    span = Span(_utc(since) or begin(end, Width.MONTH), end, organization)
    table = table_of("Organization", "Name", "Month", "Jobs", "Tokens", "Device seconds", "Credits", "Bytes stored")
    rows = []
    with open_database(load_settings(data)) as database, database.snapshot() as session:
        for row in report(session, span, Width.MONTH):
            if row.is_empty:
                continue
            rows.append(
                {
                    "organization": row.organization_id,
                    "name": row.organization,
                    "month": f"{row.start:%Y-%m}",
                    "jobs": row.jobs,
                    "trained_tokens": row.trained_tokens,
                    "device_seconds": round(row.device_seconds, 3),
                    "charged_credits": row.charged_credits,
                    "refunded_credits": row.refunded_credits,
                    "storage_bytes": row.storage_bytes,
                }
            )
            table.add_row(
                row.organization_id,
                row.organization,
                f"{row.start:%Y-%m}",
                f"{row.jobs:,}",
                f"{row.trained_tokens:,}",
                f"{row.device_seconds:,.0f}",
                f"{row.charged_credits:,}" + (f" (-{row.refunded_credits:,})" if row.refunded_credits else ""),
                f"{row.storage_bytes:,}",
            )
    print_list(table, rows, as_json, empty="Nothing was used.")


def _utc(day: datetime | None) -> datetime | None:
    return day.replace(tzinfo=UTC) if day is not None else None
