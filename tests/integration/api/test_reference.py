"""The API reference in a real browser: it renders under its strict policy and sends requests as who is signed in."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from core.accounts import service as accounts
from core.accounts.models import User
from tests.integration.api.server import Service, Tenant

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_signed_in_reader_tries_a_request(service: Service, tenant: Tenant, chromium: Browser) -> None:
    with service.runtime.database.transaction() as session:
        token = accounts.create_sign_in_link(session, session.get_one(User, tenant.user_id), 60)
    page = chromium.new_page()
    complaints: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))

    page.goto(f"{service.base_url}/sign-in?token={token}")
    page.get_by_role("button", name="Sign in here").click()
    page.wait_for_url(f"{service.base_url}/")
    assert page.url == f"{service.base_url}/"
    page.goto(f"{service.base_url}/docs")
    operation = page.locator("#operations-Account-retrieve_account")
    operation.click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response-col_description")

    answer.get_by_text(tenant.organization_id).first.wait_for(timeout=20_000)
    assert complaints == []
    assert all(url.startswith((service.base_url, "data:")) for url in requested)
    page.close()
