"""`tunewright workers`: the fleet as it last reported itself."""

import platform
from typing import Annotated

import typer

from cli.database import DataDirectory, open_database
from cli.terminal import JsonOption, err, print_list, table_of
from core.db.session import database_now
from core.fleet import service as fleet
from core.settings_loading import load_settings

GIB = 1024**3


def workers(
    here: Annotated[
        bool, typer.Option("--here", help="Exit with 1 unless a worker of this machine has reported lately.")
    ] = False,
    as_json: JsonOption = False,
    data: DataDirectory = None,
) -> None:
    """List the workers that have reported lately, and their devices."""
    settings = load_settings(data)
    with open_database(settings) as database, database.read() as session:
        places, now = fleet.driven(session, settings), database_now(session)
    table, lines = table_of("Worker and its job", "Machine", "Device", "Free", "Reported"), []
    for place in places:
        row, device, job_id = place.worker, place.device, place.row.job_id
        lines.append(
            {
                "id": row.id,
                "hostname": row.hostname,
                "process_id": row.process_id,
                "address": device.address,
                "device": device.name,
                "problem": device.problem,
                "free_bytes": device.free_bytes,
                "total_bytes": device.total_bytes,
                "job": job_id,
                "heartbeat_at": row.heartbeat_at,
                "drain_requested_at": row.drain_requested_at,
            }
        )
        table.add_row(
            f"{row.id}\n{job_id}" if job_id else row.id,
            row.hostname,
            device.name if device.problem is None else f"{device.name}: {device.problem}",
            f"{device.free_bytes / GIB:.1f} of {device.total_bytes / GIB:.1f} GiB",
            f"{(now - row.heartbeat_at).total_seconds():.0f} s ago",
        )
    print_list(table, lines, as_json, "No worker has reported lately. Start one with `tunewright worker`.")
    if here and all(place.worker.hostname != platform.node() for place in places):
        err.print(f"None of them is on {platform.node()}.")
        raise typer.Exit(1)
