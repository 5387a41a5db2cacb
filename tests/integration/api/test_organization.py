"""The audit log and the usage report, over the wire, as OpenAI's client and a browser read them."""

import time
from typing import Any

import httpx
import openai
import pytest
from openai.types.admin.organization.usage_costs_response import DataResultOrganizationCostsResult

from core.accounts.models import Scope
from core.accounts.passwords import Registration, register
from core.ids import new_id
from core.jobs import lease
from core.ledger import service as ledger
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


def test_costs_are_the_books_in_the_clients_own_shape(
    service: Service, rich: Tenant, stranger: Tenant, rows: list[dict[str, Any]]
) -> None:
    for _ in range(2):
        job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows))
        held = service.claim(job.id)
        with service.runtime.database.transaction() as session:
            lease.renew(session, service.settings, held, 1000.0)  # more than its quote
        service.write_metrics(held, 1)
        service.finish(held)
    service.runtime.database.run(lambda session: ledger.refund(session, job.id, 1))
    charged = sum(one.amount_credits for one in rich.transactions if one.kind == "capture")
    now = int(time.time())
    with admin_client(service, rich.key) as client:
        page = client.admin.organization.usage.costs(start_time=now - 86400, group_by=["line_item", "user_id"])
        results = [result for bucket in page.data for result in bucket.results]
        days = client.admin.organization.usage.costs(start_time=now - 3 * 86400, limit=2)
        rest = client.admin.organization.usage.costs(start_time=now - 3 * 86400, limit=9, page=days.next_page or "")
    with admin_client(service, stranger.key) as client:
        others = client.admin.organization.usage.costs(start_time=now - 86400)
    (result,) = results
    assert isinstance(result, DataResultOrganizationCostsResult)
    assert result.amount is not None
    assert (result.amount.value, result.amount.currency) == (charged - 1, "credits")
    assert (result.line_item, result.user_id, result.project_id) == ("tiny, fine-tuning", rich.user_id, None)
    assert (len(days.data), days.has_more, rest.has_more) == (2, True, False)
    assert days.data[-1].end_time == rest.data[0].start_time
    totals = [result.amount.value for bucket in rest.data for result in bucket.results if result.amount]  # type: ignore[union-attr]
    assert totals == [charged - 1]
    assert [bucket.results for bucket in others.data] == [[] for _ in others.data]


def test_the_log_is_read_between_moments_and_in_both_directions(service: Service, tenant: Tenant) -> None:
    for number in range(3):
        tenant.http.post("/v1/api_keys", json={"name": f"key {number}"}).raise_for_status()

    def listed(**query: Any) -> tuple[list[str], bool]:
        page = tenant.http.get("/v1/organization/audit_logs", params=query).raise_for_status().json()
        return [log["id"] for log in page["data"]], page["has_more"]

    newest_first, _ = listed()
    assert listed(before=newest_first[2]) == (newest_first[:2], False)
    assert listed(before=newest_first[3], limit=2) == (newest_first[1:3], True)
    moments = {log["effective_at"] for log in tenant.http.get("/v1/organization/audit_logs").json()["data"]}
    first, last = min(moments), max(moments)
    with admin_client(service, tenant.key) as client:
        logs = client.admin.organization.audit_logs
        assert [log.id for log in logs.list(effective_at={"gte": first, "lte": last})] == newest_first
        assert not list(logs.list(effective_at={"gt": last}))
        assert not list(logs.list(effective_at={"lt": first}))
        assert [log.effective_at for log in logs.list(effective_at={"gt": first})] == [
            log.effective_at for log in logs.list() if log.effective_at > first
        ]


@pytest.mark.parametrize("query", ["group_by[]=color", "bucket_width=1mo", "limit=181", "end_time=4&start_time=5"])
def test_impossible_questions_about_costs_are_refused(tenant: Tenant, query: str) -> None:
    answer = tenant.http.get(f"/v1/organization/costs?{query}")
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("query", ["start_time=5&end_time=4", "bucket_width=1y", "start_time=-1", "limit=0"])
def test_impossible_questions_are_refused(tenant: Tenant, query: str) -> None:
    answer = tenant.http.get(f"/v1/organization/usage/fine_tuning?{query}")
    assert answer.status_code == 400, answer.text
