"""`tunewright up` as a person uses it: it comes up, lets its owner in once, and leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from core.db.session import Database
from core.fleet import programs
from core.fleet.models import ProgramRow, ProgramStatus
from tests.e2e.rows import chat_rows
from tests.e2e.service import CREDIT_CODE, QUICK
from tests.people import follow_link
from tests.waiting import PATIENCE_SECONDS, wait_for

EPOCHS = 100  # of 4 steps: long enough to be running still when the last of its helpers is back


class Up:
    """A running `tunewright up`."""

    def __init__(self, data_dir: Path, base_model: Path, settings: Mapping[str, str]) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        # The starter model is there already, as far as `up` looks: converting it is another test's business.
        (data_dir / "models" / "smollm2-135m-instruct").mkdir(parents=True)
        (data_dir / "models" / "smollm2-135m-instruct" / "config.json").write_text("{}")
        shutil.copytree(base_model, data_dir / "models" / base_model.name)
        self.variables = environment() | {f"TUNEWRIGHT_{name}": value for name, value in settings.items()}
        self.begin()

    def begin(self) -> None:
        """Start it, on what is there already."""
        command = tunewright("up", "--port", "0", "--data", str(self.data_dir))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.variables)
        self.url, self.link = self._wait(r"running at (\S+)\n.*?(http\S+sign-in\S+)")

    def _wait(self, pattern: str) -> tuple[str, ...]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(pattern, self.log.read_text(), re.DOTALL):
                return found.groups()
            time.sleep(0.05)
        raise AssertionError(f"`tunewright up` did not get ready:\n{self.log.read_text()}")

    def wait_for_worker(self, key: str) -> None:
        """Until a worker has imported its libraries into its fork server and reported its device."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if httpx.get(f"{self.url}/v1/workers", headers={"Authorization": f"Bearer {key}"}).json()["data"]:
                return
            time.sleep(0.1)
        raise AssertionError(f"no worker reported:\n{self.log.read_text()}")

    def programs(self) -> dict[str, ProgramRow]:
        """What it keeps running, by name, as the database knows it."""
        path = self.data_dir / "tunewright.db"
        with closing(Database(f"sqlite:///{path}", lambda _: None)) as database, database.read() as session:
            return {row.name: row for row in programs.programs(session)}

    def kill(self, *names: str) -> None:
        """Kill programs outright, and wait until each is there again."""
        before = self.programs()
        for name in names:
            os.kill(before[name].process_id or 0, signal.SIGKILL)

        def are_back() -> bool:
            now = self.programs()
            return all(
                (now[name].status, now[name].restarts) == (ProgramStatus.RUNNING, before[name].restarts + 1)
                for name in names
            )

        wait_for(are_back, what=f"{names} to be started again", context=self.log.read_text)

    def processes(self) -> list[psutil.Process]:
        """Every process of this service: the supervisor's descendants, and what has its directory in its environment.

        The environment finds those that lost their parents; Valkey overwrites its own and is found by its directory.
        """
        found = {}
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("TUNEWRIGHT_DATA_DIR") == str(self.data_dir)
                mine = mine or process.cwd().startswith(str(self.data_dir)) or process.pid == self.process.pid
                if mine:
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                continue
        return [process for process in found.values() if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tunewright(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(tunewright(*arguments), env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT_")}


@pytest.fixture
def start(tmp_path: Path, models_dir: Path) -> Iterator[Callable[..., Up]]:
    """Starts a service on a directory of its own; whatever a failing test leaves of it is killed."""
    started: list[Up] = []

    def start(**settings: str) -> Up:
        started.append(Up(tmp_path / "data", models_dir / "tiny", settings))
        return started[-1]

    yield start
    for up in started:
        for process in up.processes():
            process.kill()
        up.process.wait()
        books = run("ledger", "verify", "--data", str(up.data_dir))
        assert books.returncode == 0, books.stderr


def test_a_person_signs_in_once_and_interrupts(start: Callable[..., Up]) -> None:
    up = start()
    assert httpx.get(f"{up.url}/readyz").status_code == 200
    names = {path.stem for path in (up.data_dir / "logs").glob("*.log")}
    assert {"api", "maintenance", "valkey"} < names
    assert "worker" in names
    alive = {path.stem for path in (up.data_dir / "logs").glob("*.alive")}
    assert {"api", "maintenance"} <= alive  # each says that it lives

    with httpx.Client(base_url=up.url) as browser:
        assert follow_link(browser, up.link).status_code == 303
        assert browser.get("/v1/account").status_code == 200
    assert httpx.get(up.link).status_code == 403

    fresh = run("link", "--data", str(up.data_dir))
    with httpx.Client(base_url=up.url) as browser:
        assert follow_link(browser, fresh.stdout.strip()).status_code == 303

    key = run("keys", "create", "--data", str(up.data_dir))
    secret = key.stdout.removesuffix("\n")
    listed = httpx.get(f"{up.url}/v1/fine_tuning/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert (listed.status_code, listed.json()["data"]) == (200, [])

    up.wait_for_worker(secret)
    assert (up.data_dir / "logs" / "worker.alive").exists()
    second = run("up", "--data", str(up.data_dir))
    assert second.returncode == 1
    assert f"already at {up.url}" in second.stderr
    assert "Traceback" not in second.stderr

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE_SECONDS) == 0, up.log.read_text()
    assert up.processes() == []
    assert not (up.data_dir / "service.json").exists()


def test_what_dies_is_brought_back_around_a_running_job_and_a_killed_service_leaves_no_process(
    start: Callable[..., Up],
) -> None:
    up = start(**QUICK)
    key = run("keys", "create", "--data", str(up.data_dir)).stdout.strip()
    run("codes", "create", CREDIT_CODE, "--credits", "100000", "--data", str(up.data_dir))
    up.wait_for_worker(key)
    with client(up, key) as api:
        job_id = start_job(api)
        what_dies_is_brought_back(up, api, job_id)

    before = up.processes()
    assert len(before) >= 6, [process.cmdline() for process in before]
    up.process.kill()
    up.process.wait()
    _, alive = psutil.wait_procs(before, timeout=PATIENCE_SECONDS)
    assert [process.cmdline() for process in alive] == []
    assert up.processes() == []
    again = run("codes", "create", "after", "--credits", "5", "--data", str(up.data_dir))
    assert (again.returncode, again.stdout) == (0, "AFTER is worth 5 credits.\n")

    up.begin()
    with client(up, key) as api:
        wait_for(
            lambda: status(api, job_id) not in ("queued", "running"), what="the job's end", context=up.log.read_text
        )
        assert status(api, job_id) == "succeeded"
        found = steps(api, job_id)
    assert found == list(range(1, len(found) + 1))


def what_dies_is_brought_back(up: Up, api: openai.OpenAI, job_id: str) -> None:
    """The broker, the API and maintenance die under a running worker, and then that does. The job goes on."""
    wait_for(lambda: len(steps(api, job_id)) >= 5, what="the fifth step", context=up.log.read_text)
    up.kill("valkey", "api", "maintenance")
    wait_for(lambda: len(steps(api, job_id)) >= 20, what="steps without them", context=up.log.read_text)
    assert status(api, job_id) == "running"
    up.kill("worker")
    reached = len(steps(api, job_id))
    wait_for(lambda: len(steps(api, job_id)) > reached, what="steps of the next", context=up.log.read_text)
    assert status(api, job_id) == "running"


def client(up: Up, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.url}/v1", api_key=key, max_retries=20)


def start_job(api: openai.OpenAI) -> str:
    content = "\n".join(json.dumps(row) for row in chat_rows()).encode()
    job = api.fine_tuning.jobs.create(
        model="tiny",
        training_file=api.files.create(file=("rows.jsonl", content), purpose="fine-tune").id,
        hyperparameters={"n_epochs": EPOCHS, "batch_size": 8},
        extra_body={"credit_code": CREDIT_CODE, "adapter": {"method": "lora"}},
    )
    return job.id


def steps(api: openai.OpenAI, job_id: str) -> list[int]:
    """Those with numbers, oldest first."""
    events = list(api.fine_tuning.jobs.list_events(job_id, limit=100))
    data = [event.data for event in reversed(events) if isinstance(event.data, dict)]
    return [one["step"] for one in data if one.get("valid_loss") is None]


def status(api: openai.OpenAI, job_id: str) -> str:
    return str(api.fine_tuning.jobs.retrieve(job_id).status)


def test_a_busy_port_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("up", "--port", str(port), "--data", str(tmp_path / "data"))
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data" / "tunewright.db").exists()
