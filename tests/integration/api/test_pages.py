"""Pages without a browser: what is said without the bundle, and to strangers; and forms that are sent twice."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import pages
from tests.integration.api.server import Service, Tenant


def test_a_stranger_is_asked_to_sign_in(service: Service) -> None:
    for path in ("/", "/new", "/jobs", "/jobs/ftjob-x", "/credits", "/settings", "/compare?job=a&job=b"):
        answer = httpx.get(service.base_url + path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in"), path
    part = httpx.get(f"{service.base_url}/jobs", headers={"hx-request": "true"})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in")


def test_a_person_is_told_what_went_wrong_on_a_page_and_a_program_in_the_envelope(service: Service) -> None:
    for path, status in (("/nowhere", 404), ("/sign-in?token=spent", 403)):
        shown = httpx.get(service.base_url + path, headers={"accept": "text/html"})
        assert (shown.status_code, shown.headers["content-type"]) == (status, "text/html; charset=utf-8")
        assert shown.headers["x-request-id"] in shown.text
        assert httpx.get(service.base_url + path).json()["error"]["message"]
    assert httpx.get(f"{service.base_url}/v1/nowhere", headers={"accept": "text/html"}).json()["error"]


def test_without_its_bundle_the_dashboard_says_how_to_build_it(
    browser: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "STATIC", tmp_path)
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "make assets" in answer.text
    assert browser.get("/v1/account").status_code == 200


def test_a_form_that_is_sent_twice_starts_one_job(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    form = start_form(browser, rich.upload(rows))
    answers = [browser.post("/new", data=form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    assert len(rich.client.fine_tuning.jobs.list().data) == 1


def test_a_plan_that_has_changed_is_shown_again(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    form = start_form(browser, rich.upload(rows)) | {"fingerprint": "0" * 16}
    answer = browser.post("/new", data=form)
    assert answer.status_code == 409
    assert "The plan has changed" in answer.text
    assert rich.client.fine_tuning.jobs.list().data == []


def start_form(browser: httpx.Client, file_id: str) -> dict[str, str]:
    """What the start form of the plan page would send."""
    shown = browser.get("/new", params={"model": "tiny", "file": file_id}).text
    form = shown[shown.index('id="start"') :]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[: form.index("</form>")]))
