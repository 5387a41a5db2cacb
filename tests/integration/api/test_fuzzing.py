"""Generated requests over the whole document, on both databases: no 5xx, and every response is as documented.

TUNEWRIGHT_THOROUGH=1 sends 5,000 cases to each database instead of a few hundred.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.app import create_app
from core.accounts.models import Scope
from core.settings import Settings
from tests.conftest import empty_postgres
from tests.integration.api.server import Service, running_application

DOCUMENT = create_app(Settings()).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in SCHEMA.get_all_operations()}
EXAMPLES = 5000 // len(OPERATIONS) + 1 if os.environ.get("TUNEWRIGHT_THOROUGH") else 12
# The generated request may be wrong in any way; these say what any response must be.
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@dataclass(frozen=True)
class Target:
    """A service to send to, the key of its owner, and ids of what that owns."""

    service: Service
    key: str
    ids: dict[str, str]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def target(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Any,
    valkey_url: str,
    postgres_server: str,
) -> Iterator[Target]:
    """An administrator's service with a finished job, a plan and a file, and no rates."""
    directory = tmp_path_factory.mktemp("fuzzed")
    with empty_postgres(postgres_server) as postgres_url:
        settings = Settings(
            data_dir=directory,
            models_dir=models_dir,
            redis_url=valkey_url,
            database_url=postgres_url if request.param == "postgresql" else None,
            heartbeat_seconds=300,
            lease_seconds=900,
            key_requests_per_minute=0,
            address_requests_per_minute=0,
            code_guesses_per_hour=0,
            max_upload_bytes=1024**2,
        )
        with running_application(settings) as service, service.tenant() as tenant:
            _, _, key = service.enrol(is_admin=True, scope=Scope.ADMIN)
            tenant.grant(1000)
            file_id = tenant.upload([{"prompt": f"What is {n}?", "completion": "A number."} for n in range(12)])
            job = tenant.client.fine_tuning.jobs.create(model="tiny", training_file=file_id)
            service.finish(service.claim(job.id))
            plan = tenant.http.post("/v1/plans", json={"model": "tiny", "training_file": file_id}).json()
            model = tenant.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
            ids = {
                "file_id": file_id,
                "fine_tuning_job_id": job.id,
                "plan_id": plan["id"],
                "model_id": str(model),
                "name": "metrics.csv",
            }
            yield Target(service, tenant.key, ids | {"admin": key})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_response_is_as_documented(target: Target, name: str) -> None:
    operation = OPERATIONS[name]
    key = target.ids["admin"] if operation.path.startswith("/v1/credit_codes") else target.key
    checks = [schemathesis.checks.CHECKS.get_one(check) for check in CHECKS]
    cases = st.one_of(
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
    )
    session = requests.Session()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=cases, known=st.booleans())
    def send(case: schemathesis.Case, known: bool) -> None:
        if known and operation.method != "delete":
            name_known_ids(case, target.ids)
        headers = {"authorization": f"Bearer {key}"}
        response = case.call(base_url=target.service.base_url, headers=headers, session=session, timeout=60)
        assert "x-request-id" in response.headers
        case.validate_response(response, checks=checks, headers=headers)

    send()
    session.close()


def name_known_ids(case: schemathesis.Case, ids: dict[str, str]) -> None:
    """Let a generated request be about what exists."""
    for parameter in case.path_parameters or {}:
        if parameter in ids:
            case.path_parameters[parameter] = ids[parameter]
    if isinstance(case.body, dict) and "training_file" in case.body:
        case.body["training_file"], case.body["model"] = ids["file_id"], "tiny"
