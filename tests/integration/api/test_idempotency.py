"""A create that is sent twice makes one object, whether the client says so or only does so."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from core.ledger import codes
from tests.integration.api.server import DroppingTransport, Service, Tenant


@pytest.fixture
def transport() -> DroppingTransport:
    return DroppingTransport()


@pytest.fixture
def forgetful(service: Service, transport: DroppingTransport) -> Iterator[Tenant]:
    """An organization whose client loses the response to its first POST, and retries as it always does."""
    with httpx2.Client(transport=transport) as network, service.tenant(http_client=network, max_retries=2) as tenant:
        tenant.grant(10_000)
        yield tenant


def test_retried_upload_makes_one_file(service: Service, transport: DroppingTransport, forgetful: Tenant) -> None:
    before = set(service.artifacts)

    file_id = forgetful.upload([{"text": "one"}, {"text": "two"}])

    assert file_id in transport.dropped[0]
    assert [file.id for file in forgetful.client.files.list()] == [file_id]
    assert len(set(service.artifacts) - before) == 1


def test_retried_job_is_one_job_and_one_hold(
    transport: DroppingTransport, forgetful: Tenant, rows: list[dict[str, Any]]
) -> None:
    transport.dropped.append("not yet")
    file_id = forgetful.upload(rows)
    transport.dropped.clear()

    job = forgetful.client.fine_tuning.jobs.create(model="tiny", training_file=file_id)

    assert job.id in transport.dropped[0]
    assert [listed.id for listed in forgetful.client.fine_tuning.jobs.list()] == [job.id]
    assert [transaction.kind for transaction in forgetful.transactions] == ["grant", "hold"]


def test_same_job_sent_twice_on_purpose_is_two_jobs(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    file_id = rich.upload(rows)
    ids = {rich.client.fine_tuning.jobs.create(model="tiny", training_file=file_id).id for _ in range(2)}
    assert len(ids) == 2


def test_idempotency_key_returns_the_first_result_and_refuses_another_body(
    rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    key = {"idempotency-key": "one"}

    first = rich.http.post("/v1/fine_tuning/jobs", json=body, headers=key).json()
    second = rich.http.post("/v1/fine_tuning/jobs", json=body, headers=key).json()
    other = rich.http.post("/v1/fine_tuning/jobs", json={**body, "seed": 1}, headers=key)
    plan = rich.http.post("/v1/plans", json=body, headers=key).json()

    assert second["id"] == first["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    assert plan["object"] == "fine_tuning.plan"
    assert [transaction.kind for transaction in rich.transactions] == ["grant", "hold"]


def test_idempotency_key_of_another_organization_means_nothing(rich: Tenant, stranger: Tenant) -> None:
    body, key = {"name": "ci"}, {"idempotency-key": "shared"}
    mine = rich.http.post("/v1/api_keys", json=body, headers=key).json()
    theirs = stranger.http.post("/v1/api_keys", json=body, headers=key).json()
    assert mine["id"] != theirs["id"]


def test_retried_redemption_redeems_once(service: Service, tenant: Tenant) -> None:
    code = f"R-{tenant.organization_id}"
    service.runtime.database.run(lambda session: codes.create_code(session, code, 100, per_account=5))
    retry = {"x-stainless-retry-count": "1"}

    first = tenant.http.post("/v1/credits/redemptions", json={"code": code}).json()
    second = tenant.http.post("/v1/credits/redemptions", json={"code": code}, headers=retry).json()
    on_purpose = tenant.http.post("/v1/credits/redemptions", json={"code": code}).json()

    assert second == first
    assert (first["credits"], first["balance"]["available"]) == (100, 100)
    assert on_purpose["balance"]["available"] == 200


def test_retried_key_is_one_key_whose_secret_works(tenant: Tenant) -> None:
    retry = {"x-stainless-retry-count": "1"}
    lost = tenant.http.post("/v1/api_keys", json={"name": "ci"}).json()
    key = tenant.http.post("/v1/api_keys", json={"name": "ci"}, headers=retry).json()

    assert key["id"] == lost["id"]
    assert [listed["name"] for listed in tenant.http.get("/v1/api_keys").json()["data"]] == ["ci", "test"]
    used = {"authorization": f"Bearer {key['secret']}"}
    assert tenant.http.get("/v1/account", headers=used).status_code == 200
    assert tenant.http.get("/v1/account", headers={"authorization": f"Bearer {lost['secret']}"}).status_code == 401

    late = tenant.http.post("/v1/api_keys", json={"name": "ci"}, headers=retry)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "api_key_in_use")
