"""`tunewright workers`: the fleet as it last reported itself."""

import platform
from typing import Annotated

import typer
from rich.table import Table

from cli.database import DataDirectory, open_database
from cli.terminal import err, out
from core.db.session import database_now
from core.fleet import service as fleet
from core.settings_loading import load_settings

GIB = 1024**3


def workers(
    here: Annotated[
        bool, typer.Option("--here", help="Exit with 1 unless a worker of this machine has reported lately.")
    ] = False,
    data: DataDirectory = None,
) -> None:
    """List the workers that have reported lately, and their devices."""
    settings = load_settings(data)
    with open_database(settings) as database, database.read() as session:
        rows, now = fleet.workers(session, settings), database_now(session)
    table = Table("Worker", "Machine", "Device", "Free", "Job", "Reported")
    for row in rows:
        device = fleet.device_of(row)
        table.add_row(
            row.id,
            row.hostname,
            device.name if device.problem is None else f"{device.name}: {device.problem}",
            f"{device.free_bytes / GIB:.1f} of {device.total_bytes / GIB:.1f} GiB",
            row.job_id or "",
            f"{(now - row.heartbeat_at).total_seconds():.0f} s ago",
        )
    out.print(table if rows else "No worker has reported lately. Start one with `tunewright worker`.")
    if here and all(row.hostname != platform.node() for row in rows):
        err.print(f"None of them is on {platform.node()}.")
        raise typer.Exit(1)
