"""A program that trains knows no password of the service's."""

import os
import subprocess
import sys

import pytest

from worker.environment import without_secrets

SECRETS = {
    "TUNEWRIGHT_DATABASE_URL": "postgresql://user:hidden@host/db",
    "TUNEWRIGHT_REDIS_URL": "redis://:hidden@host/0",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "AWS_SESSION_TOKEN": "hidden",
    "HF_TOKEN": "hidden",
    "HUGGING_FACE_HUB_TOKEN": "hidden",
    "PGPASSWORD": "hidden",
    "SMTP_PASSWORD": "hidden",
    "HTTPS_PROXY": "http://somebody:hidden@proxy:3128",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("HF_HOME", "/somewhere")


def test_secrets_are_left_out_and_nothing_else() -> None:
    kept = without_secrets()
    assert kept.keys() & SECRETS.keys() == set()
    assert (kept["CUDA_VISIBLE_DEVICES"], kept["HF_HOME"], kept["PATH"]) == ("1", "/somewhere", os.environ["PATH"])


def test_a_process_started_again_shows_no_secret_to_whoever_looks_at_it() -> None:
    script = "from worker.environment import start_again_without_secrets; start_again_without_secrets(); "
    script += "print(open('/proc/self/environ').read(), 'and it goes on')"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "hidden" not in said
    assert "CUDA_VISIBLE_DEVICES" in said
    assert "and it goes on" in said
    assert os.environ["HF_TOKEN"] == "hidden", "this process keeps its own"


def test_a_fork_of_another_program_forgets_in_its_place() -> None:
    """It cannot start that program again: what forked it waits for its answer."""
    script = (
        "import multiprocessing, os\n"
        "from worker.environment import start_again_without_secrets\n"
        "def work():\n"
        "    start_again_without_secrets()\n"
        "    print('HF_TOKEN' in os.environ, os.environ['HF_HOME'], flush=True)\n"
        "process = multiprocessing.get_context('fork').Process(target=work)\n"
        "process.start()\n"
        "process.join()\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "False /somewhere\n"
