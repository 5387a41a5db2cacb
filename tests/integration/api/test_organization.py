"""The audit log and the usage report, over the wire, as OpenAI's client and a browser read them."""

from typing import Any

import httpx
import openai
import pytest

from core.accounts.models import Scope
from core.accounts.passwords import Registration, register
from core.ids import new_id
from tests.integration.api.server import Service, Tenant


def admin_client(service: Service, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=key, admin_api_key=key, max_retries=0)


def test_a_job_is_followed_from_upload_to_download(
    service: Service, rich: Tenant, stranger: Tenant, rows: list[dict[str, Any]]
) -> None:
    file_id = rich.upload(rows)
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=file_id)
    service.finish(service.claim(job.id))
    rich.http.get(f"/v1/fine_tuning/jobs/{job.id}/artifacts/adapter.zip").raise_for_status()
    rich.http.delete(f"/v1/fine_tuning/jobs/{job.id}").raise_for_status()
    with admin_client(service, rich.key) as client:
        found = list(client.admin.organization.audit_logs.list(limit=2))  # pages by itself
        mine = client.admin.organization.audit_logs.list(event_types=["api_key.created"])
    assert [log.type for log in found] == [
        "fine_tuning.job.deleted",
        "fine_tuning.artifact.downloaded",
        "fine_tuning.job.created",
        "file.created",
        "api_key.created",
    ]
    actor = found[0].actor
    assert actor is not None
    assert actor.api_key is not None
    assert (actor.type, actor.api_key.user and actor.api_key.user.id) == ("api_key", rich.user_id)
    assert [log.api_key_created and log.api_key_created.id is not None for log in mine] == [True]
    assert job.id not in stranger.http.get("/v1/organization/audit_logs").text


def test_sign_ins_are_recorded_failed_ones_too_without_the_password(service: Service) -> None:
    email = f"{new_id('u')}@example.org".lower()
    register(service.runtime, Registration(email, "correct horse", "Ada"))
    with httpx.Client(base_url=service.base_url, headers={"sec-fetch-site": "same-origin"}) as browser:
        token = browser.get("/sign-in").text.split('name="csrf_token" value="')[1].split('"')[0]
        for password in ("battery staple", "correct horse"):
            browser.post("/sign-in", data={"email": email, "password": password, "csrf_token": token})
        listed = browser.get("/v1/organization/audit_logs").json()["data"]
    assert [log["type"] for log in listed] == ["login.succeeded", "login.failed", "user.added"]
    assert listed[1]["login.failed"]["email"] == email
    assert listed[0]["actor"]["session"]["user"]["email"] == email
    assert listed[0]["actor"]["session"]["ip_address"] == "127.0.0.1"
    assert "battery" not in str(listed)


def test_administrators_see_every_organization(service: Service, tenant: Tenant) -> None:
    _, _, key = service.enrol(is_admin=True, scope=Scope.ADMIN)
    headers = {"authorization": f"Bearer {key}"}
    made = tenant.http.post("/v1/api_keys", json={"name": "seen"}).json()["id"]
    listed = httpx.get(
        f"{service.base_url}/v1/organization/audit_logs", params={"resource_ids[]": made}, headers=headers
    ).json()["data"]
    assert [log["organization_id"] for log in listed] == [tenant.organization_id]


def test_usage_is_what_was_charged(
    service: Service, rich: Tenant, browser: httpx.Client, rows: list[dict[str, Any]]
) -> None:
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows))
    held = service.claim(job.id)
    service.write_metrics(held, 1)
    service.finish(held)
    charged = sum(one.amount_credits for one in rich.transactions if one.kind == "capture")
    page = rich.http.get("/v1/organization/usage/fine_tuning", params={"bucket_width": "1mo"}).json()
    (bucket,) = page["data"]
    (result,) = bucket["results"]
    assert (result["num_jobs"], result["trained_tokens"], result["charged_credits"]) == (1, 256, charged)
    days = rich.http.get("/v1/organization/usage/fine_tuning", params={"start_time": bucket["start_time"], "limit": 1})
    assert len(days.json()["data"]) == 1
    table = browser.get("/usage.csv").text.splitlines()
    assert table[-1].split(",")[1] == "1"
    assert "Usage" in browser.get("/usage").text


@pytest.mark.parametrize("query", ["start_time=5&end_time=4", "bucket_width=1y", "start_time=-1", "limit=0"])
def test_impossible_questions_are_refused(tenant: Tenant, query: str) -> None:
    answer = tenant.http.get(f"/v1/organization/usage/fine_tuning?{query}")
    assert answer.status_code == 400, answer.text
