"""One service for the tests that leave it as they found it, and the tiny model they train."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service, check_books, running_service
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one tiny base model, `tiny`."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_model(directory / "tiny")
    return directory


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """The service on SQLite."""
    with running_service(tmp_path_factory.mktemp("service"), models_dir, valkey_url) as service:
        yield service


@pytest.fixture(autouse=True)
def books_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test, the books of the service it used are proven from their rows."""
    yield
    if "service" in request.fixturenames:
        check_books(request.getfixturevalue("service").database)
