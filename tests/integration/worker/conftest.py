"""A warm fork server and a tiny model for all tests of the supervisor."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.worker.installation import Installation, installation
from tests.tiny_models import make_tiny_model
from worker.fork_server import warm_up


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one tiny base model, `tiny`."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_model(directory / "tiny")
    return directory


@pytest.fixture(scope="session")
def fork_server() -> None:
    """The fork server with everything imported."""
    warm_up()


@pytest.fixture
def here(tmp_path: Path, models_dir: Path, valkey_url: str, fork_server: None) -> Iterator[Installation]:
    """An installation of the test's own, more impatient with trainers and stores than the one that ships."""
    with installation(tmp_path, models_dir, valkey_url, stall_seconds=2.0, outage_seconds=3.0) as found:
        yield found
