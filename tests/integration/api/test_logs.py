"""What an operator reads of requests: whose, from where, and who was refused."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from core.accounts import service as accounts
from core.errors import RateLimitError
from core.ids import new_id
from core.throttle.service import Rate
from tests.integration.api.server import Service, Tenant
from tests.waiting import wait_for

PROXIED = {"x-forwarded-for": "203.0.113.9"}
Lines = list[Any]


def of_event(lines: Lines, event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def lines_of(work: Callable[[], httpx.Response]) -> tuple[httpx.Response, Lines]:
    """What a request is answered with, and what was logged until its own line, which comes after the answer."""
    with capture_logs(processors=[merge_contextvars]) as lines:
        answer = work()
        request_id = answer.headers["x-request-id"]
        wait_for(
            lambda: any(line.get("request_id") == request_id for line in of_event(lines, "request")),
            what="the request's line",
        )
    return answer, [line for line in lines if line.get("request_id") == request_id]


def test_a_created_job_is_found_by_its_request(service: Service, rich: Tenant, rows: list[dict[str, Any]]) -> None:
    body = {"model": "tiny", "training_file": rich.upload(rows)}
    answer, lines = lines_of(lambda: rich.http.post("/v1/fine_tuning/jobs", json=body, headers=PROXIED))
    (created,), (request,) = of_event(lines, "job_created"), of_event(lines, "request")
    assert (created["job_id"], created["organization"]) == (answer.json()["id"], rich.organization_id)
    assert (request["address"], request["organization"]) == ("203.0.113.9", rich.organization_id)
    assert request["key"] == rich.key[:9]
    assert rich.key not in str(lines)


def test_a_refused_key_is_a_line_of_its_own(service: Service, tenant: Tenant) -> None:
    key_id = tenant.http.get("/v1/api_keys").json()["data"][0]["id"]
    service.runtime.database.run(lambda session: accounts.revoke_api_key(session, tenant.organization_id, key_id))
    for secret, shown, reason in (
        (tenant.key, tenant.key[:9], "revoked"),
        ("tw-" + "x" * 43, "tw-xxxxxx", "unknown"),
        ("sk-another-services-secret", None, "unknown"),
    ):
        headers = {**PROXIED, "authorization": f"Bearer {secret}"}
        url = f"{service.base_url}/v1/files"
        answer, lines = lines_of(lambda url=url, headers=headers: httpx.get(url, headers=headers))  # type: ignore[misc]
        (refused,) = of_event(lines, "key_refused")
        assert answer.status_code == 401
        assert (refused["address"], refused["key"], refused["reason"]) == ("203.0.113.9", shown, reason)
        assert secret not in str(lines)


def test_a_failed_sign_in_is_a_line_of_its_own_without_what_was_typed(service: Service) -> None:
    with httpx.Client(base_url=service.base_url, headers={"sec-fetch-site": "same-origin", **PROXIED}) as browser:
        page = browser.get("/sign-in").text
        token = page.partition('name="csrf_token" value="')[2].partition('"')[0]
        form = {"csrf_token": token, "email": "my-password-by-mistake", "password": "hunter2hunter2"}
        _, lines = lines_of(lambda: browser.post("/sign-in", data=form))
        assert "tunewright_session" not in browser.cookies
        (failed,) = of_event(lines, "sign_in_failed")
        assert (failed["address"], failed["method"], failed["reason"]) == ("203.0.113.9", "password", "unknown")
        assert "by-mistake" not in str(lines)
        assert "hunter2" not in str(lines)

        _, lines = lines_of(lambda: browser.get("/sign-in", params={"token": "spent-long-ago"}))
        (failed,) = of_event(lines, "sign_in_failed")
        assert (failed["method"], failed["reason"]) == ("link", "spent")
        assert "spent-long-ago" not in str(lines)


def test_a_refusal_by_rate_is_a_line_of_its_own(service: Service) -> None:
    rate, identity = Rate("requests from this address", 1, 3600), new_id("address-")
    service.runtime.throttle.take(rate, identity)
    with capture_logs() as lines, pytest.raises(RateLimitError):
        service.runtime.throttle.take(rate, identity)
    (limited,) = of_event(lines, "rate_limited")
    assert (limited["rate"], limited["limit"]) == ("requests from this address", 1)
