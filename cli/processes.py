"""`tunewright api` and `tunewright worker [drain]`: single processes of a service that is spread over machines."""

import os
import platform
import time
from functools import partial
from typing import Annotated, NoReturn

import typer
import uvicorn

from cli.database import DataDirectory, open_database
from cli.terminal import err
from cli.training_workers import EXTRA_GRACE_SECONDS, training_command, training_devices, worker_command
from core.errors import ServiceUnavailableError
from core.fleet import service as fleet
from core.settings_loading import load_settings

POLL_SECONDS = 0.2  # the database has no events to wait for
GRACEFUL_SHUTDOWN_SECONDS = 5  # event streams are open as long as their job runs; clients resume them by themselves


def api(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8040,
) -> None:
    """Run the HTTP API. Database, broker and store are named by TUNEWRIGHT_* variables."""
    load_settings()  # what is wrong with them is said before a server is there to fall over it
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=host,
        port=port,
        http="api.request_heads:BoundedHttp",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


worker = typer.Typer(invoke_without_command=True)


@worker.callback()
def run(
    context: typer.Context,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="cpu|cuda:N[:SLICE]|UUID",
            help="Train on this one, and may be said again; default: every sound GPU, else the CPU.",
        ),
    ] = None,
    maintenance: Annotated[
        bool, typer.Option("--maintenance", help="Inspect files and sweep for what was lost, instead of training.")
    ] = False,
) -> None:
    """Run the training worker of this machine, or the maintenance worker."""
    if context.invoked_subcommand is not None:
        return
    if maintenance:
        _become(*worker_command("--maintenance"))
    devices = device or training_devices()
    err.print(f"Training on {', '.join(devices)}.")
    _become(*training_command(devices))


@worker.command()
def drain(
    name: Annotated[
        str | None, typer.Argument(metavar="[WORKER]", help="Id of a worker; default: every one of this machine.")
    ] = None,
    data: DataDirectory = None,
) -> None:
    """Have workers put their jobs back into the queue, after a checkpoint, and end; others go on with the jobs."""
    settings = load_settings(data)
    with open_database(settings) as database:
        with database.read() as session:
            here = [row.id for row in fleet.workers(session, settings) if row.hostname == platform.node()]
        wanted = [name] if name else here
        for worker_id in wanted:
            database.run(partial(fleet.request_drain, worker_id=worker_id))
        deadline = time.monotonic() + settings.heartbeat_seconds + settings.stop_grace_seconds + EXTRA_GRACE_SECONDS
        while wanted and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            with database.read() as session:
                wanted = [row.id for row in fleet.workers(session, settings) if row.id in wanted]
    if wanted:
        raise ServiceUnavailableError(f"Still at work: {', '.join(wanted)}. They end when they next report.")
    err.print("Drained." if name or here else f"No worker of {platform.node()} has reported lately.")


def _become(*command: str) -> NoReturn:
    """Go on as the worker, so that signals and the exit code are its own."""
    os.execv(command[0], command)  # noqa: S606 - our own module, no shell
