"""`tunewright up`: the whole service on one machine, as child processes of this one."""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.text import Text

from cli.broker import Broker, free_port, prepare_broker
from cli.database import DataDirectory, load_settings, open_database
from cli.service_files import RunningService, announce, lock_directory
from cli.sign_in import sign_in_url
from cli.supervision import Program, Runner, supervise
from cli.terminal import err, out
from cli.training_workers import training_devices, training_program, worker_command
from core.accounts.service import create_sign_in_link, ensure_owner
from core.db.migrate import upgrade
from core.errors import ConflictError, ServiceUnavailableError
from core.settings import Settings

STARTER_MODEL = "smollm2-135m-instruct"
READY_SECONDS = 120.0
ASK_EVERY_SECONDS = 0.2
API_GRACE_SECONDS = 10.0
MAINTENANCE_GRACE_SECONDS = 10.0


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8040,
    data: DataDirectory = None,
) -> None:
    """Run the whole service on this machine, with nothing else installed. Ctrl-C stops it."""
    settings = load_settings(data)
    with lock_directory(settings.data_dir):
        url = _url(host, port := _claim_port(host, port))
        err.print(f"Starting on {settings.data_dir.absolute()} …")
        upgrade(settings.resolved_database_url)
        with open_database(settings) as database, database.transaction() as session:
            token = create_sign_in_link(session, ensure_owner(session), settings.sign_in_link_seconds)
        broker = None if settings.redis_url else prepare_broker(settings.data_dir.absolute())
        stages = _stages(settings, broker, host, port)
        asyncio.run(supervise(stages, _welcome(settings, url, token)))
    err.print("Stopped.")


def _stages(settings: Settings, broker: Broker | None, host: str, port: int) -> list[list[Runner]]:
    """The programs of the service, in the order in which they stop."""
    environment = {**os.environ, "TUNEWRIGHT_DATA_DIR": str(settings.data_dir.absolute()), "PYTHONUNBUFFERED": "1"}
    if broker is not None:
        environment["TUNEWRIGHT_REDIS_URL"] = broker.url
    cli = (sys.executable, "-m", "cli")
    api = Program("api", (*cli, "api", "--host", host, "--port", str(port)), API_GRACE_SECONDS)
    maintenance = Program("maintenance", worker_command("--maintenance"), MAINTENANCE_GRACE_SECONDS)
    workers = [maintenance, *(training_program(device, settings) for device in training_devices())]
    if not (settings.resolved_models_dir / STARTER_MODEL / "config.json").exists():
        err.print(f"Fetching the starter model {STARTER_MODEL} in the background, once.")
        workers.append(Program("starter-model", (*cli, "models", "fetch", STARTER_MODEL), grace_seconds=2.0, once=True))
    logs = _log_directory(settings)
    stages = ([api], workers, [broker.program] if broker else [])
    return [[Runner(program, environment, logs) for program in stage] for stage in stages]


async def _welcome(settings: Settings, url: str, token: str) -> None:
    """Wait for the service to be ready, then say where it is."""
    await _until_ready(url)
    announce(settings.data_dir, RunningService(url, os.getpid()))
    public = settings.public_url or url
    for label, value in (
        ("Tunewright is running at ", public),
        ("Sign in, once:           ", sign_in_url(public, token)),
        ("API for clients:         ", f"{public}/v1   (key: tunewright keys create --data {settings.data_dir})"),
        ("Logs:                    ", str(_log_directory(settings))),
    ):
        out.print(Text.assemble((label, "dim"), value), soft_wrap=True)
    err.print("Ctrl-C stops it.")


async def _until_ready(url: str) -> None:
    """Raises ServiceUnavailableError where the service does not get ready, with its own word of why."""
    last = "it did not answer"
    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:
        try:
            async with asyncio.timeout(READY_SECONDS):
                while True:
                    try:
                        response = await client.get("/readyz")
                        if response.is_success:
                            return
                        last = response.text
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(ASK_EVERY_SECONDS)
        except TimeoutError:
            raise ServiceUnavailableError(f"The service was not ready after {READY_SECONDS:.0f} s: {last}") from None


def _claim_port(host: str, port: int) -> int:
    """The port to listen on. Raises ConflictError where it is taken, before anything is started."""
    if port == 0:
        return free_port(host)
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return port
    except OSError as error:
        raise ConflictError(
            f"Port {port} on {host} cannot be used ({error.strerror}). Stop what listens there, or choose another with "
            "--port."
        ) from None


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _log_directory(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "logs"
