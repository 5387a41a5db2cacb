"""A warm fork server, a tiny model and a data set, made once for all tests of the trainer."""

from pathlib import Path

import pytest
import torch

from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import write_conversations
from worker.fork_server import warm_up


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models gain nothing from a second thread, and lose much where tests share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fork_server() -> None:
    """The fork server with everything imported."""
    warm_up()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 chat rows."""
    return write_conversations(tmp_path_factory.mktemp("data") / "chat.jsonl")
