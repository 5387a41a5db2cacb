"""`tunewright api` and `tunewright worker`: single processes of a service that is spread over machines."""

import asyncio
import os
import sys
from typing import Annotated, NoReturn

import typer
import uvicorn

from cli.supervision import Runner, supervise
from cli.terminal import err
from cli.training_workers import training_devices, training_program, worker_command
from core.settings import Settings

GRACEFUL_SHUTDOWN_SECONDS = 5  # event streams are open as long as their job runs; clients resume them by themselves


def api(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8040,
) -> None:
    """Run the HTTP API. Database, broker and store are named by TUNEWRIGHT_* variables."""
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )


def worker(
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda:N", help="Train on this one; default: every GPU, else the CPU."),
    ] = None,
    maintenance: Annotated[
        bool, typer.Option("--maintenance", help="Inspect files and sweep for what was lost, instead of training.")
    ] = False,
) -> None:
    """Run a training worker for each device of this machine, or the maintenance worker."""
    if maintenance:
        _become("--maintenance")
    devices = [device] if device else training_devices()
    err.print(f"Training on {', '.join(devices)}.")
    if len(devices) == 1:
        _become("--device", devices[0])
    settings = Settings()
    logs = settings.data_dir.absolute() / "logs"
    asyncio.run(supervise([[Runner(training_program(name, settings), os.environ, logs) for name in devices]]))


def _become(*arguments: str) -> NoReturn:
    """Go on as the worker, so that signals and the exit code are its own."""
    os.execv(sys.executable, worker_command(*arguments))  # noqa: S606 - our own module, no shell
