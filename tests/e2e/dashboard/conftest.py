"""One service, one trained model and one browser for all tests of the dashboard, gone when they are done."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.dashboard.visitor import Visitor, enrol, owner_of
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.tiny_models import LLAMA_70B, derive_model, make_tiny_model
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture(scope="package")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, and `huge`, which no machine of these tests can hold: planning reads its header alone."""
    directory = tmp_path_factory.mktemp("dashboard-models")
    tiny = make_tiny_model(directory / "tiny")
    derive_model(tiny, directory / "huge", **LLAMA_70B)
    return directory


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """The real service with a real worker."""
    with running_service(tmp_path_factory.mktemp("dashboard"), models_dir, valkey_url) as service:
        yield service


@pytest.fixture(scope="package")
def finished(service: Service) -> FineTuningJob:
    """A job that has succeeded."""
    job = service.create_job(chat_rows(), suffix="colours", hyperparameters={"n_epochs": 3})
    return service.wait(job.id, "succeeded")


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visitor(service: Service, chromium: Browser) -> Iterator[Visitor]:
    """The owner of the installation, signed in. What the pages ask for and complain about is watched."""
    with Visitor.signed_in(service, chromium, owner_of(service)) as visitor:
        yield visitor
        visitor.check()


@pytest.fixture
def page(visitor: Visitor) -> Page:
    """The visitor's page."""
    return visitor.page


@pytest.fixture
def newcomer(service: Service, chromium: Browser) -> Iterator[Visitor]:
    """Someone of another organization, without credits."""
    with Visitor.signed_in(service, chromium, enrol(service)) as visitor:
        yield visitor
        visitor.check()
