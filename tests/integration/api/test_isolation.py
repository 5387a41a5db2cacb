"""Every route, with another tenant's ids, and with every key or browser that must not open it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from api.app import create_app
from api.deps import SESSION_COOKIE
from api.forms import form_token
from core.accounts import service as accounts
from core.accounts.models import ApiKey, Scope, User
from core.datasets.models import StoredFile
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.ledger import codes
from core.registry.queries import model_of
from core.settings import Settings
from tests.integration.api.routes import asks_who, filled_in, form_fields, routes_that_take
from tests.integration.api.server import Service, Tenant
from tests.people import session_token

DOCUMENT: dict[str, Any] = create_app(Settings()).openapi()
OPERATIONS = [
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
    if path.startswith("/v1/")
]
OPEN_TO_ALL = {"/healthz", "/readyz", "/metrics"}
ADMIN = "/v1/credit_codes"
NOT_THERE_YET = {"/v1/hub_token"}  # what a new organization has none of
# What everybody may see with a valid key, whatever the id: base models belong to nobody.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/api_keys": {"name": "x"},
    "/v1/credit_codes": {"code": "X", "credits": 1},
    "/v1/credits/redemptions": {"code": "NOT-A-CODE"},
}


def test_every_route_is_walked() -> None:
    assert {path for path in DOCUMENT["paths"] if not path.startswith("/v1/")} == OPEN_TO_ALL
    assert len(OPERATIONS) > 25


@pytest.fixture(scope="module")
def owned(service: Service) -> Iterator[dict[str, str]]:
    """Path parameters that name what one tenant owns."""
    with service.tenant() as tenant:
        tenant.grant(10_000)
        rows = [{"prompt": f"Secret question {n}?", "completion": "Secret answer."} for n in range(12)]
        file_id = tenant.upload(rows)
        job = tenant.client.fine_tuning.jobs.create(model="tiny", training_file=file_id, suffix="secret")
        plan = tenant.http.post("/v1/plans", json={"model": "tiny", "training_file": file_id}).json()
        held = service.claim(job.id)
        service.write_metrics(held, 1)
        service.write_checkpoint(held, 1)
        service.finish(held)
        model = tenant.client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
        checkpoint = tenant.client.fine_tuning.jobs.checkpoints.list(job.id).data[0].id
        key = tenant.http.get("/v1/api_keys").json()["data"][0]["id"]
        assert model is not None
        yield {
            "file_id": file_id,
            "fine_tuning_job_id": job.id,
            "job_id": job.id,
            "user_id": tenant.user_id,
            "checkpoint_id": checkpoint,
            "plan_id": plan["id"],
            "model_id": model,
            "key_id": key,
            "name": "adapter.zip",
            "code": "NOT-A-CODE",
            "organization_id": tenant.organization_id,
        }


def address(path: str, owned: dict[str, str]) -> str:
    return path.format_map(owned)


def send(service: Service, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    body = BODIES.get(path, {"model": "tiny", "training_file": "file-x"}) if method == "POST" else None
    return httpx.request(method, f"{service.base_url}{path}", json=body, headers=headers, timeout=30)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_another_tenants_ids_name_nothing(
    service: Service, stranger: Tenant, owned: dict[str, str], method: str, path: str
) -> None:
    answer = send(service, method, address(path, owned), {"authorization": f"Bearer {stranger.key}"})

    if path.startswith(ADMIN):
        assert answer.json()["error"]["code"] == "insufficient_scope"
    elif "{" in path:
        assert answer.status_code == 404, answer.text
    else:
        assert answer.status_code in (200, 400, 404, 415), answer.text
    for owners in owned.values():
        if owners not in ("adapter.zip", "NOT-A-CODE") and owners not in address(path, owned):
            assert owners not in answer.text
    assert "Secret" not in answer.text
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("kind", ["no", "wrong", "revoked", "expired"])
def test_keys_that_open_nothing(
    service: Service, tenant: Tenant, owned: dict[str, str], method: str, path: str, kind: str
) -> None:
    headers = {"authorization": f"Bearer {unusable_key(service, tenant, kind)}"} if kind != "no" else {}
    answer = send(service, method, address(path, owned), headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "Secret" not in answer.text


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_key_that_may_only_read_changes_nothing(
    service: Service, owned: dict[str, str], method: str, path: str
) -> None:
    _, _, key = service.enrol(scope=Scope.READ)
    answer = send(service, method, address(path, owned), {"authorization": f"Bearer {key}"})
    if method == "GET" and not path.startswith(ADMIN):
        assert answer.status_code == (404 if "{" in path or path in NOT_THERE_YET else 200), answer.text
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


def unusable_key(service: Service, tenant: Tenant, kind: str) -> str:
    """A key that once worked, or never did."""
    if kind == "wrong":
        return "tw-" + "x" * 43
    with service.runtime.database.transaction() as session:
        new = accounts.create_api_key(session, session.get_one(User, tenant.user_id), kind)
        key = session.get_one(ApiKey, new.key.id)
        if kind == "revoked":
            accounts.revoke_api_key(session, tenant.organization_id, key.id)
        else:
            key.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    return new.secret


PAGES = [
    (method, route) for method in ("GET", "POST") for route in routes_that_take(method) if not route.include_in_schema
]
OF_SOMEONE = [(method, route) for method, route in PAGES if asks_who(route)]
OF_ADMINISTRATORS = ("/accounts", "/audit", "/settings/codes")
# What an address or a form names things by, and what the owner's is called there.
NAMED_IN = {"model": "model_id", "file": "file_id", "validation_file": "file_id", "job": "job_id", "jobs": "job_id"}


def named(method_and_route: tuple[str, APIRoute]) -> str:
    return f"{method_and_route[0]} {method_and_route[1].path}"


def visit(
    service: Service, method: str, route: APIRoute, owned: dict[str, str], token: str | None
) -> tuple[str, httpx.Response]:
    """Ask for a page, or send its form, about what its owner has; the address, and the answer."""
    values = {name: owned[mine] for name, mine in NAMED_IN.items()}
    headers = {"sec-fetch-site": "same-origin", "accept": "text/html"}
    headers |= {"cookie": f"{SESSION_COOKIE}={token}"} if token else {}
    with httpx.Client(base_url=service.base_url, headers=headers, params=values, timeout=30) as client:
        path = filled_in(route.path, owned, "x")
        if method == "GET":
            with client.stream("GET", path) as answer:
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    answer.read()
                return path, answer
        fields = {name: values.get(name, "x") for name in form_fields(route)} | values
        return path, client.post(path, data=fields | {"csrf_token": form_token(token or "")})


def test_what_is_open_to_strangers_is_known() -> None:
    assert {route.path for _, route in PAGES if not asks_who(route)} == {
        *("/docs", "/icon.svg", "/sign-in", "/sign-in/link", "/sign-out", "/sign-up"),
    }


@pytest.mark.parametrize("page", OF_SOMEONE, ids=named)
def test_pages_and_forms_show_and_change_nothing_of_another_tenant(
    service: Service, tenant: Tenant, owned: dict[str, str], page: tuple[str, APIRoute]
) -> None:
    method, route = page
    _, before = visit(service, method, route, owned, None)
    assert before.status_code in (303, 401, 403), "without a session"
    with service.runtime.database.transaction() as session:
        token = session_token(session, tenant.user_id)
    path, answer = visit(service, method, route, owned, token)
    if path.startswith(OF_ADMINISTRATORS):
        assert answer.status_code == 403
    elif "{" in route.path and route.path != "/guide/{name}":
        assert answer.status_code in (403, 404), answer.text
    else:
        assert answer.status_code < 500, answer.text
    for name, owners in owned.items():
        asked = {
            "model_id",
            "file_id",
            "job_id",
            "fine_tuning_job_id",
            "name",
            "code",
        }  # the page may say that it is not there
        assert name in asked or owners in path or owners not in answer.text
    assert "Secret" not in answer.text


def test_after_all_of_that_the_owner_has_what_there_was(service: Service, owned: dict[str, str]) -> None:
    with service.runtime.database.read() as session:
        assert session.get_one(Job, owned["job_id"]).status is JobStatus.SUCCEEDED
        assert session.get_one(ApiKey, owned["key_id"]).revoked_at is None
        assert session.get_one(User, owned["user_id"]).disabled_at is None
        assert session.get(StoredFile, owned["file_id"]) is not None
        assert model_of(session, owned["organization_id"], owned["model_id"]) is not None


def test_administrators_keys_administer_codes(service: Service, stranger: Tenant) -> None:
    _, _, key = service.enrol(is_admin=True, scope=Scope.ADMIN)
    name = f"Admin-{stranger.organization_id}"
    with httpx.Client(base_url=service.base_url, headers={"authorization": f"Bearer {key}"}) as admin:
        body = {"code": f" {name.lower()} ", "credits": 70, "max_redemptions": 2}
        made = admin.post("/v1/credit_codes", json=body).json()
        assert (made["code"], made["credits"], made["redemptions"]) == (name.upper(), 70, 0)
        again = admin.post("/v1/credit_codes", json=body | {"credits": 71})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "code_exists")
        assert stranger.http.post("/v1/credits/redemptions", json={"code": name}).json()["credits"] == 70
        listed = {code["code"]: code for code in admin.get("/v1/credit_codes", params={"limit": 100}).json()["data"]}
        assert listed[name.upper()]["redemptions"] == 1
        disabled = admin.post(f"/v1/credit_codes/{name.lower()}/disable").json()
        assert disabled["disabled_at"] is not None
        assert admin.post("/v1/credit_codes/NOT-A-CODE/disable").json()["error"]["code"] == "code_unknown"
    _, _, other = service.enrol()
    answer = httpx.post(
        f"{service.base_url}/v1/credits/redemptions", json={"code": name}, headers={"authorization": f"Bearer {other}"}
    )
    assert answer.json()["error"]["code"] == "code_unknown"


def test_a_key_makes_no_key_that_may_do_more(service: Service, tenant: Tenant) -> None:
    refused = tenant.http.post("/v1/api_keys", json={"name": "x", "scope": "admin"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    reader = tenant.http.post("/v1/api_keys", json={"name": "x", "scope": "read", "expires_at": 4102444800}).json()
    assert (reader["scope"], reader["expires_at"]) == ("read", 4102444800)
    past = tenant.http.post("/v1/api_keys", json={"name": "x", "expires_at": 1})
    assert (past.status_code, past.json()["error"]["param"]) == (400, "expires_at")


def test_an_administrators_key_is_none_any_more_when_its_owner_is_not(service: Service) -> None:
    _, user_id, key = service.enrol(is_admin=True, scope=Scope.ADMIN)
    with service.runtime.database.transaction() as session:
        session.get_one(User, user_id).is_admin = False
    answer = httpx.get(f"{service.base_url}/v1/credit_codes", headers={"authorization": f"Bearer {key}"})
    assert answer.json()["error"]["code"] == "insufficient_scope"


def test_a_repeated_create_of_a_code_makes_one(service: Service) -> None:
    _, _, key = service.enrol(is_admin=True, scope=Scope.ADMIN)
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "one"}
    body = {"code": f"TWICE-{key[-8:]}", "credits": 5}
    first, second = (httpx.post(f"{service.base_url}/v1/credit_codes", json=body, headers=headers) for _ in range(2))
    assert first.json() == second.json()
    with service.runtime.database.read() as session:
        assert any(use.code.code == body["code"].upper() for use in codes.list_codes(session, limit=1000).rows)
