"""`tunewright up`: the whole service on one machine, as child processes of this one."""

import asyncio
import os
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from cli.broker import Broker, beat_for, free_port, prepare_broker
from cli.database import DataDirectory, open_database
from cli.service_files import RunningService, announce, lock_directory
from cli.supervision import Liveness, Program, Runner, supervise
from cli.terminal import err, out, warning_line
from cli.training_workers import training_devices, training_program, worker_command
from core.accounts.service import create_sign_in_link, ensure_owner, sign_in_url
from core.db.migrate import upgrade
from core.db.session import Database
from core.errors import ConflictError, ServiceUnavailableError
from core.fleet.models import ProgramStatus
from core.fleet.programs import report_programs, requested_starts
from core.own_process import keep_private
from core.settings import Settings
from core.settings_loading import load_settings

STARTER_MODEL = "smollm2-135m-instruct"
READY_SECONDS = 120.0
ASK_EVERY_SECONDS = 0.2
BRING_BACK_SECONDS = 1.0
API_GRACE_SECONDS = 10.0
MAINTENANCE_GRACE_SECONDS = 10.0


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8040,
    data: DataDirectory = None,
) -> None:
    """Run the whole service on this machine, with nothing else installed. Ctrl-C stops it."""
    settings = load_settings(data)
    keep_private(settings.data_dir)
    with lock_directory(settings.data_dir):
        url = _url(host, port := _claim_port(host, port))
        err.print(f"Starting on {settings.data_dir.absolute()} …")
        upgrade(settings.resolved_database_url)
        with open_database(settings) as database:
            with database.transaction() as session:
                token = create_sign_in_link(session, ensure_owner(session), settings.sign_in_link_seconds)
            asyncio.run(_run(settings, database, url, token, _programs(settings, host, port)))
    err.print("Stopped.")


@dataclass(frozen=True)
class _Programs:
    """The programs of the service, in the order in which they stop, and what their environment adds to ours."""

    stages: list[list[Program]]
    environment: dict[str, str]
    broker: Broker | None


def _programs(settings: Settings, host: str, port: int) -> _Programs:
    environment = {
        "TUNEWRIGHT_DATA_DIR": str(settings.data_dir.absolute()),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a program that hangs and is killed writes where it hung
    }
    broker = None if settings.redis_url else prepare_broker(settings.data_dir.absolute())
    if broker is not None:
        environment["TUNEWRIGHT_REDIS_URL"] = broker.url
    cli = (sys.executable, "-m", "cli")
    api = Program("api", (*cli, "api", "--host", host, "--port", str(port)), API_GRACE_SECONDS, liveness=Liveness())
    maintenance = Program(
        "maintenance", worker_command("--maintenance"), MAINTENANCE_GRACE_SECONDS, liveness=Liveness()
    )
    workers = [maintenance, training_program(training_devices(), settings)]
    if not (settings.resolved_models_dir / STARTER_MODEL / "config.json").exists():
        err.print(f"Fetching the starter model {STARTER_MODEL} in the background, once.")
        workers.append(Program("starter-model", (*cli, "models", "fetch", STARTER_MODEL), grace_seconds=2.0, once=True))
    return _Programs([[api], workers, [broker.program] if broker else []], environment, broker)


async def _run(settings: Settings, database: Database, url: str, token: str, programs: _Programs) -> None:
    """Keep the programs running until a signal, and the database told of how they fare."""
    changed = asyncio.Event()
    environment, logs = {**os.environ, **programs.environment}, _log_directory(settings)
    stages = [[Runner(program, environment, logs, changed.set) for program in stage] for stage in programs.stages]
    runners = [runner for stage in stages for runner in stage]
    beside = [
        asyncio.create_task(_report_changes(database, runners, changed)),
        asyncio.create_task(_bring_back(database, runners)),
    ]
    if programs.broker is not None:
        beside.append(asyncio.create_task(beat_for(programs.broker.url, stages[-1][0].alive_path)))
    try:
        await supervise(stages, _welcome(settings, url, token, runners))
    finally:
        for task in beside:
            task.cancel()
        await asyncio.to_thread(_report, database, runners)


async def _report_changes(database: Database, runners: Sequence[Runner], changed: asyncio.Event) -> None:
    while True:
        await changed.wait()
        changed.clear()
        await asyncio.to_thread(_report, database, runners)


async def _bring_back(database: Database, runners: Sequence[Runner]) -> None:
    """Start drained programs again once the database says that somebody wants them."""
    while True:
        await asyncio.sleep(BRING_BACK_SECONDS)
        drained = [runner for runner in runners if runner.state.status is ProgramStatus.DRAINED]
        if not drained:
            continue
        wanted = await asyncio.to_thread(_requested_starts, database)
        for runner in drained:
            if runner.program.name in wanted:
                runner.start_again()


def _requested_starts(database: Database) -> Sequence[str]:
    try:
        with database.read() as session:
            return requested_starts(session, platform.node())
    except DBAPIError as error:  # the next look asks again
        warning_line("up", f"could not ask which programs are wanted again: {error.orig}")
        return ()


def _report(database: Database, runners: Sequence[Runner]) -> None:
    states = [runner.state for runner in runners]
    try:
        database.run(lambda session: report_programs(session, platform.node(), states))
    except DBAPIError as error:  # the next change says it anew
        warning_line("up", f"could not write down how the programs fare: {error.orig}")


async def _welcome(settings: Settings, url: str, token: str, runners: Sequence[Runner]) -> None:
    """Wait for the service to be ready, then say where it is."""
    await _until_ready(url, runners)
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


async def _until_ready(url: str, runners: Sequence[Runner]) -> None:
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
            words = [runner.last_words() for runner in runners if runner.state.status is ProgramStatus.RESTARTING]
            raise ServiceUnavailableError(
                "\n".join([f"The service was not ready after {READY_SECONDS:.0f} s: {last}", *words])
            ) from None


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
