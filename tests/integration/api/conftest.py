"""One application for all tests of the API; every test has organizations of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from core.accounts import service as accounts
from core.accounts.models import User
from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application
from tests.people import follow_link
from tests.tiny_models import LLAMA_70B, derive_model, make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> Iterator[None]:
    """Logs as in production, one plain line each: the default for terminals renders a traceback for half a minute."""
    processors = [structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info]
    structlog.configure([*processors, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models: `tiny`; `huge`, which no device can hold; `pickled`, without safetensors; `short`: 64 tokens."""
    directory = tmp_path_factory.mktemp("models")
    tiny = make_tiny_model(directory / "tiny")
    derive_model(tiny, directory / "huge", **LLAMA_70B)
    derive_model(tiny, directory / "pickled", weights="pytorch_model.bin")
    derive_model(tiny, directory / "short", max_position_embeddings=64)
    return directory


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """The application on SQLite. Its one device stays in the fleet for the whole run."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        models_dir=models_dir,
        redis_url=valkey_url,
        max_upload_bytes=64 * 1024**2,
        heartbeat_seconds=300,
        lease_seconds=900,
        address_requests_per_minute=0,
        code_guesses_per_hour=0,
    )
    with running_application(settings) as service:
        yield service


@pytest.fixture
def tenant(service: Service) -> Iterator[Tenant]:
    """An organization with nothing."""
    with service.tenant() as tenant:
        yield tenant


@pytest.fixture
def stranger(service: Service) -> Iterator[Tenant]:
    """Another organization."""
    with service.tenant() as tenant:
        yield tenant


@pytest.fixture
def rich(tenant: Tenant) -> Tenant:
    """The organization, with 10,000 credits."""
    tenant.grant(10_000)
    return tenant


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Twelve conversations."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"My lamp number {number} does not glow."},
                {"role": "assistant", "content": f"Unplug lamp {number}, wait ten seconds and plug it in again."},
            ]
        }
        for number in range(12)
    ]


@pytest.fixture
def browser(service: Service, rich: Tenant) -> Iterator[httpx.Client]:
    """A browser that the tenant is signed in with."""
    with service.runtime.database.transaction() as session:
        token = accounts.create_sign_in_link(session, session.get_one(User, rich.user_id), 60)
    with httpx.Client(base_url=service.base_url, headers={"sec-fetch-site": "same-origin"}, timeout=30) as client:
        follow_link(client, f"/sign-in?token={token}")
        yield client
