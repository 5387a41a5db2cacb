"""The service that the demo talks to: found running on its directory, or started there and stopped again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from cli.service_files import running_service

USUAL_PORT = 8040
READY_SECONDS = 120
STOP_SECONDS = 60
CREDIT_CODE = "SANTIAGO"


class DemoFailedError(Exception):
    """Raised when the demo cannot go on; the message says where to look."""


def tunewright(data_dir: Path, *arguments: str, quiet: bool = False) -> str:
    """Run a command of the command line on the demo's directory and return its output. Raises DemoFailedError."""
    command = [sys.executable, "-m", "cli", *arguments, "--data", str(data_dir)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE if quiet else None, text=True)
    if result.returncode != 0:
        said = (result.stderr or "").strip()
        raise DemoFailedError(f"`tunewright {' '.join(arguments)}` ended with code {result.returncode}. {said}")
    return result.stdout.strip()


@contextmanager
def service(data_dir: Path) -> Iterator[str]:
    """The URL of a service on the directory. One that was running already goes on running."""
    running = running_service(data_dir)
    if running is not None:
        yield running.url
        return
    log_path = data_dir / "logs" / "up.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cli", "up", "--data", str(data_dir), "--port", str(_port())]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield _wait_until_announced(data_dir, process, log_path)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_SECONDS)


def api_key(data_dir: Path, url: str) -> str:
    """A key that works: the one of the last run, or a new one."""
    kept = data_dir / "demo-key"
    if kept.exists() and _is_accepted(url, kept.read_text()):
        return kept.read_text()
    secret = tunewright(data_dir, "keys", "create", "--name", "make demo", quiet=True)
    kept.touch(mode=0o600)
    kept.write_text(secret)
    return secret


def ensure_credit_code(data_dir: Path) -> None:
    """The code of the demo, made on its first run."""
    try:
        tunewright(data_dir, "codes", "create", CREDIT_CODE, "--credits", "10000", quiet=True)
    except DemoFailedError as error:
        if "exists already" not in str(error):
            raise


def _wait_until_announced(data_dir: Path, process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        running = running_service(data_dir)
        if running is not None:
            return running.url
        time.sleep(0.1)
    raise DemoFailedError(f"The service did not start. The end of {log_path}:\n{log_path.read_text()[-2000:]}")


def _is_accepted(url: str, secret: str) -> bool:
    return httpx.get(f"{url}/v1/account", headers={"Authorization": f"Bearer {secret}"}).is_success


def _port() -> int:
    """The usual port, or any free one where it is taken."""
    try:
        with socket.create_server(("127.0.0.1", USUAL_PORT)):
            return USUAL_PORT
    except OSError:
        return 0


def read_record(data_dir: Path) -> dict[str, str] | None:
    """What the last run left: the job and where its adapter is; None where there was none, or its adapter is gone."""
    try:
        record: dict[str, str] = json.loads((data_dir / "demo.json").read_text())
    except FileNotFoundError:
        return None
    return record if Path(record["adapter"]).is_dir() and Path(record["base_model"]).is_dir() else None


def write_record(data_dir: Path, record: dict[str, str]) -> None:
    """Remember a finished run for the next one."""
    temporary = data_dir / "demo.json.tmp"
    temporary.write_text(json.dumps(record, indent=2))
    os.replace(temporary, data_dir / "demo.json")
