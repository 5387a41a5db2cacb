"""How often one may ask, and how much an organization may have: each refusal says which limit it was."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from limits.storage import MemoryStorage

from core.accounts.limits import set_limits
from core.artifacts import queries as artifacts
from core.datasets import queries
from core.db.leases import Holder
from core.errors import RateLimitError
from core.jobs import lease
from core.ledger import codes
from core.plans import idle
from core.settings import Settings
from core.throttle.service import Rate, Throttle
from tests.integration.api.server import Service, Tenant, running_application

REQUESTS, GUESSES = 40, 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """A service with low rates, and counters of its own."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("limited"),
        models_dir=models_dir,
        redis_url=valkey_url.replace("/0", "/4"),
        key_requests_per_minute=REQUESTS,
        address_requests_per_minute=REQUESTS * 2,
        code_guesses_per_hour=GUESSES,
        max_upload_bytes=4096,
        heartbeat_seconds=300,
        lease_seconds=900,
    )
    with running_application(settings) as service:
        yield service


@pytest.fixture(autouse=True)
def fresh_counters(service: Service) -> None:
    """Nothing was asked yet."""
    service.runtime.throttle._shared.storage.reset()


def test_a_key_is_counted_and_told(service: Service, tenant: Tenant, stranger: Tenant) -> None:
    first = tenant.http.get("/v1/account")
    assert first.headers["x-ratelimit-limit-requests"] == str(REQUESTS)
    assert first.headers["x-ratelimit-remaining-requests"] == str(REQUESTS - 1)
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    answers = [tenant.http.get("/v1/account") for _ in range(REQUESTS)]
    assert [answer.status_code for answer in answers] == [200] * (REQUESTS - 1) + [429]
    refused = answers[-1]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert "x-should-retry" not in refused.headers
    assert stranger.http.get("/v1/account").status_code == 200


def test_an_address_is_counted_without_any_key(service: Service) -> None:
    with httpx.Client(base_url=service.base_url) as nobody:
        statuses = [nobody.get("/v1/account").status_code for _ in range(REQUESTS * 2 + 1)]
        assert statuses == [401] * REQUESTS * 2 + [429]
        assert nobody.get("/healthz").status_code == 200


@pytest.mark.parametrize("through", ["a redemption", "a job"])
def test_guessing_codes_is_slowed(service: Service, tenant: Tenant, rows: list[dict[str, Any]], through: str) -> None:
    code = f"REAL-{tenant.organization_id}"
    service.runtime.database.run(lambda session: codes.create_code(session, code, 1000))
    file_id = tenant.upload(rows)

    def attempt(name: str) -> httpx.Response:
        if through == "a redemption":
            return tenant.http.post("/v1/credits/redemptions", json={"code": name})
        body = {"model": "tiny", "training_file": file_id, "credit_code": name}
        return tenant.http.post("/v1/fine_tuning/jobs", json=body)

    for number in range(GUESSES):
        assert attempt(f"GUESS{number}").json()["error"]["code"] == "code_unknown"
    refused = attempt(code)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) <= 3600
    assert tenant.transactions == []


def test_guesses_of_one_address_count_over_accounts(service: Service, tenant: Tenant, stranger: Tenant) -> None:
    for number in range(GUESSES):
        tenant.http.post("/v1/credits/redemptions", json={"code": f"GUESS{number}"})
    assert stranger.http.post("/v1/credits/redemptions", json={"code": "GUESS"}).status_code == 429


def own_limits(service: Service, tenant: Tenant, **limits: int) -> None:
    service.runtime.database.run(lambda session: set_limits(session, tenant.organization_id, dict(limits)))


def test_queued_jobs_are_limited(service: Service, rich: Tenant, rows: list[dict[str, Any]]) -> None:
    own_limits(service, rich, queued_jobs=2)
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    first, _, refused = (rich.http.post("/v1/fine_tuning/jobs", json=body) for _ in range(3))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queued_jobs_limit")
    assert "limit queued_jobs is 2" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    job = f"/v1/fine_tuning/jobs/{first.json()['id']}"
    rich.http.post(f"{job}/pause")
    assert rich.http.post("/v1/fine_tuning/jobs", json=body).status_code == 200
    assert rich.http.post(f"{job}/resume").json()["error"]["code"] == "queued_jobs_limit"


def test_running_jobs_are_limited_and_others_go_first(
    service: Service, rich: Tenant, stranger: Tenant, rows: list[dict[str, Any]]
) -> None:
    own_limits(service, rich, running_jobs=1)
    stranger.grant(1000)
    with service.runtime.database.transaction() as session:  # what other tests left in the queue
        while lease.claim_next(session, service.settings, Holder("worker_x", ["cpu"]), "cpu") is not None:
            pass
    mine = [
        rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows), seed=seed).id
        for seed in (1, 2)
    ]
    theirs = stranger.client.fine_tuning.jobs.create(model="tiny", training_file=stranger.upload(rows)).id
    with service.runtime.database.transaction() as session:
        claimed = [lease.claim_next(session, service.settings, Holder("worker_x", ["cpu"]), "cpu") for _ in range(3)]
    assert [one[1].id for one in claimed if one is not None] == [mine[0], theirs]
    assert rich.client.fine_tuning.jobs.retrieve(mine[1]).status == "queued"


def test_storage_is_limited(service: Service, tenant: Tenant) -> None:
    own_limits(service, tenant, storage_bytes=3000)
    kept = tenant.upload(b"x" * 2000)
    before = len(service.artifacts)
    for size in (1001, 2000):
        refused = tenant.http.post(
            "/v1/files", files={"file": ("rows.txt", b"y" * size)}, data={"purpose": "fine-tune"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_bytes_limit")
        assert "limit storage_bytes is 3,000" in refused.json()["error"]["message"]
    assert len(service.artifacts) == before
    tenant.http.delete(f"/v1/files/{kept}")
    tenant.upload(b"z" * 3000)


def test_the_number_of_files_is_limited(
    service: Service, tenant: Tenant, stranger: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "max_files", 2)
    first, _ = tenant.upload(b"one row"), tenant.upload(b"one row")
    refused = tenant.http.post("/v1/files", files={"file": ("rows.txt", b"x")}, data={"purpose": "fine-tune"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "files_limit")
    assert "limit files is 2" in refused.json()["error"]["message"]
    stranger.upload(b"one row")
    tenant.http.delete(f"/v1/files/{first}")
    tenant.upload(b"one row")


def test_the_number_of_plans_that_no_job_uses_is_limited_until_they_are_forgotten(
    service: Service, rich: Tenant, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "max_plans", 1)
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    plan = rich.http.post("/v1/plans", json=body).json()["id"]
    refused = rich.http.post("/v1/plans", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "plans_limit")
    assert rich.http.post("/v1/fine_tuning/jobs", json={**body, "plan": plan}).status_code == 200
    idle_plan = rich.http.post("/v1/plans", json=body).json()["id"]  # the job's does not count any more

    settings = service.settings.model_copy(update={"plan_retention_seconds": -service.settings.quote_seconds - 60})
    while service.runtime.database.run(lambda session: idle.forget_idle(session, settings)):
        pass
    assert rich.http.get(f"/v1/plans/{idle_plan}").status_code == 404
    assert rich.http.get(f"/v1/plans/{plan}").status_code == 200
    assert rich.http.post("/v1/plans", json=body).status_code == 200


def test_checkpoints_that_are_kept_and_published_ones_count_toward_storage(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job_id = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id

    def used() -> int:
        with service.runtime.database.read() as session:
            organization_id = rich.organization_id
            return queries.stored_bytes(session, organization_id) + artifacts.stored_bytes(session, organization_id)

    held, before = service.claim(job_id), used()
    service.write_checkpoint(held, 1)
    size = len(b"checkpoint")
    assert used() == before + size
    checkpoint = rich.client.fine_tuning.jobs.checkpoints.list(job_id).data[0].id
    rich.http.post(f"/v1/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint}/publish").raise_for_status()
    for step in (2, 3, 4):
        service.write_checkpoint(held, step)
    assert used() == before + 3 * size, "the two newest, and the published one"
    own_limits(service, rich, storage_bytes=used() + 5)
    refused = rich.http.post("/v1/files", files={"file": ("rows.txt", b"123456")}, data={"purpose": "fine-tune"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "storage_bytes_limit")


def test_an_upload_is_limited_by_the_organization_and_the_service(service: Service, tenant: Tenant) -> None:
    own_limits(service, tenant, upload_bytes=1000)
    for size, limit in ((1001, "1,000"), (200_000, "4,096")):
        refused = tenant.http.post(
            "/v1/files", files={"file": ("rows.txt", b"y" * size)}, data={"purpose": "fine-tune"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "file_too_large")
        assert f"limit upload_bytes, {limit}" in refused.json()["error"]["message"]


def test_without_redis_each_process_counts_alone() -> None:
    throttle = Throttle("redis://127.0.0.1:1")
    rate = Rate("tries of this test", 2, 60)
    assert [throttle.take(rate, "me").remaining for _ in range(2)] == [1, 0]  # type: ignore[union-attr]
    with pytest.raises(RateLimitError, match="More than 2 tries of this test") as refused:
        throttle.take(rate, "me")
    assert isinstance(throttle._own.storage, MemoryStorage)
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.message, again.retry_after_seconds) == (refused.value.message, refused.value.retry_after_seconds)
    assert throttle.take(Rate("tries of this test", 0, 60), "me") is None
