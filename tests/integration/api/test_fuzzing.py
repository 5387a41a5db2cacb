"""Generated requests over the whole document, on both databases: no 5xx, and every response is as documented.

TUNEWRIGHT_THOROUGH=1 sends 5,000 cases to each database instead of a few hundred.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.dashboard.form import FIELD_NAMES
from api.deps import SESSION_COOKIE
from api.forms import form_token
from core.accounts.models import Scope, User
from core.settings import Settings
from tests.databases import new_postgres
from tests.integration.api.hostile_forms import hostile_bodies, hostile_values
from tests.integration.api.routes import filled_in, form_fields, routes_that_take
from tests.integration.api.server import Service, running_application
from tests.people import session_token

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
    with new_postgres(postgres_server) as postgres_url:
        settings = Settings(
            data_dir=directory,
            models_dir=models_dir,
            redis_url=valkey_url.removesuffix("0") + "1",  # what its forms have counted stays theirs
            database_url=postgres_url if request.param == "postgresql" else None,
            heartbeat_seconds=300,
            lease_seconds=900,
            key_requests_per_minute=0,
            address_requests_per_minute=0,
            code_guesses_per_hour=0,
            sign_up_open=True,
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
                "job_id": job.id,
                "user_id": tenant.user_id,
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


# As they stand in an address: what some library on the way refuses in its own words, or takes for a number.
HOSTILE = {
    "NUL": "%00",
    "half a surrogate pair": "%ed%a0%80",
    "not UTF-8": "%ff%fe",
    "superscript": "%c2%b2",
    "another script's digit": "%d9%a3",
    "huge number": "9" * 400,
    "below zero": "-1",
    "exponent": "1e400",
    "not a number": "nan",
    "no date": "2026-99-99T99:99:99",
    "folder above": "..%2f..%2fetc%2fpasswd",
    "pattern": "%25_%5c",
    "long": "a" * 4000,
}
QUERIES = ("after", "limit", "order", "sort", "q", "model", "file", "name", "status", "purpose", "max_length", "token")
HEADERS = (
    *("idempotency-key", "x-stainless-retry-count", "range", "if-range", "if-none-match", "last-event-id", "accept"),
    *("content-type", "hx-target", "origin", "sec-fetch-site", "x-request-id", "x-forwarded-for", "cookie"),
)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_no_value_in_an_address_is_answered_with_500(target: Target, value: str) -> None:
    headers = {"authorization": f"Bearer {target.ids['admin']}"}
    query = "&".join(f"{name}={value}" for name in QUERIES)
    with httpx.Client(base_url=target.service.base_url, headers=headers, timeout=60) as client:
        for route in routes_that_take("GET"):
            path, known = route.path, filled_in(route.path, target.ids, value)
            names = [field.alias for field in route.dependant.query_params]
            addresses = {f"{known}?{name}={value}" for name in names}
            if "{" in path:
                addresses.add(filled_in(path, {}, value))
            if names or path == "/new":  # which reads its fields itself
                addresses.add(f"{known}?{query}")
            for address in sorted(addresses):
                with client.stream("GET", address) as answer:
                    assert answer.status_code < 500 or path == "/readyz", (address[:200], answer.status_code)


@pytest.mark.parametrize("value", [b"\xb2", b"\xff\xfe", b"9" * 400, b"-1", b"bytes=9-1,-", b"", b"a" * 3000, b'"\\'])
def test_no_value_of_a_header_is_answered_with_500(target: Target, value: bytes) -> None:
    key = {"authorization": f"Bearer {target.key}"}
    artifact = f"/v1/fine_tuning/jobs/{target.ids['fine_tuning_job_id']}/artifacts/metrics.csv"
    with httpx.Client(base_url=target.service.base_url, headers=key, timeout=60) as client:
        for name in HEADERS:
            for path in ("/v1/account", artifact, "/jobs", f"/v1/files/{target.ids['file_id']}/content"):
                assert client.get(path, headers={name: value}).status_code < 500, (name, path)
            answer = client.post("/v1/credits/redemptions", json={"code": "NONE"}, headers={name: value})
            assert answer.status_code < 500, name
    answer = httpx.get(f"{target.service.base_url}/v1/account", headers={"authorization": b"Bearer x" + value})
    assert answer.status_code in (401, 431)


FORMS = [route for route in routes_that_take("POST") if not route.include_in_schema]
# What this one reads by itself, beyond what it declares.
MORE_FIELDS = {"/new": ("model", "file", "shape", "column_text", "suffix", "credit_code", "start_key", "fingerprint")}


def test_every_form_is_sent() -> None:
    found = {route.path for route in FORMS}
    assert found >= MORE_FIELDS.keys() | {"/sign-in", "/new/files", "/accounts/new", "/jobs/{job_id}/cancel"}


@pytest.mark.parametrize("route", FORMS, ids=lambda route: route.path)
def test_no_body_of_a_form_is_answered_with_500(target: Target, route: APIRoute) -> None:
    fields = sorted({*form_fields(route), *MORE_FIELDS.get(route.path, ())} - {"csrf_token"})
    with target.service.runtime.database.transaction() as session:  # of its own: some forms end the one they come from
        user = session.get_one(User, target.ids["user_id"])
        user.is_admin, user.disabled_at = True, None
        token = session_token(session, user.id)
    headers = {"cookie": f"{SESSION_COOKIE}={token}", "sec-fetch-site": "same-origin", "accept": "text/html"}
    path = filled_in(route.path, target.ids, "1")
    with httpx.Client(base_url=target.service.base_url, headers=headers, timeout=60) as client:
        wrong, csrf_token = [], form_token(token)
        bodies = [*hostile_values(fields, csrf_token, FIELD_NAMES if route.path == "/new" else ())]
        if target.service.settings.database_url is None:  # no database sees what cannot be read
            bodies += hostile_bodies(fields, csrf_token)
        for body in bodies:
            kind = {} if body.content_type is None else {"content-type": body.content_type.encode("latin-1")}
            answer = client.post(path, content=body.content, headers=kind)
            if answer.status_code >= 500 and not (answer.status_code == 503 and "hub" in path):
                wrong.append((body.wrong, answer.status_code))
    assert wrong == []


def name_known_ids(case: schemathesis.Case, ids: dict[str, str]) -> None:
    """Let a generated request be about what exists."""
    for parameter in case.path_parameters or {}:
        if parameter in ids:
            case.path_parameters[parameter] = ids[parameter]
    if isinstance(case.body, dict) and "training_file" in case.body:
        case.body["training_file"], case.body["model"] = ids["file_id"], "tiny"
