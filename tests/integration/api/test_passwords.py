"""Signing up, in and out with a password, through the forms a browser sends."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.accounts.models import User
from core.settings import Settings
from tests.integration.api.server import Service, running_application

PASSWORD = "correct horse battery"
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}
FAILURES = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """A service that anyone can sign up to, with counters of its own."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("open"),
        models_dir=models_dir,
        redis_url=valkey_url.replace("/0", "/3"),
        sign_up_open=True,
        sign_in_failures_per_hour=FAILURES,
    )
    with running_application(settings) as service:
        yield service


@pytest.fixture
def browser(service: Service) -> Iterator[httpx.Client]:
    """A browser without a session. Each comes from an address of its own, as far as the service is told."""
    with httpx.Client(base_url=service.base_url, headers=SAME_ORIGIN) as browser:
        service.runtime.throttle._shared.storage.reset()
        yield browser


def fill(browser: httpx.Client, page: str, **fields: str) -> httpx.Response:
    """Load a page and send its form."""
    shown = browser.get(page)
    token = re.search(r'name="csrf_token" value="(\w{64})"', shown.text)
    assert token is not None, shown.text
    return browser.post(page, data={"csrf_token": token[1], **fields})


def refusal(browser: httpx.Client, page: str, **fields: str) -> str:
    """Send the form of a page that refuses it; what the page says then, once."""
    answer = fill(browser, page, **fields)
    assert (answer.status_code, answer.headers["location"]) == (303, page)
    assert "tunewright_session" not in answer.cookies
    shown, again = browser.get(page), browser.get(page)
    assert (shown.status_code, 'role="alert"' in shown.text, 'role="alert"' in again.text) == (200, True, False)
    return shown.text


def sign_up(browser: httpx.Client, email: str, password: str = PASSWORD) -> httpx.Response:
    return fill(browser, "/sign-up", email=email, password=password, name="Ada")


def test_a_person_signs_up_out_and_in(service: Service, browser: httpx.Client) -> None:
    assert sign_up(browser, " Ada@Example.org ").status_code == 303
    account = browser.get("/v1/account").json()
    assert (account["user"]["email"], account["user"]["is_admin"]) == ("ada@example.org", False)
    with service.runtime.database.read() as session:
        password_hash = session.get_one(User, account["user"]["id"]).password_hash
    assert password_hash is not None
    assert password_hash.startswith("$argon2id$")
    assert PASSWORD not in password_hash

    cookie = browser.cookies["tunewright_session"]
    assert 'value="x@y.z"' in refusal(browser, "/sign-in", email="x@y.z", password=PASSWORD)
    shown = browser.get("/sign-in").text
    token = re.search(r'value="(\w{64})"', shown)
    assert token is not None
    assert browser.post("/sign-out", data={"csrf_token": token[1]}).headers["location"] == "/sign-in"
    assert browser.get("/v1/account").status_code == 401
    stolen = httpx.get(f"{service.base_url}/v1/account", cookies={"tunewright_session": cookie})
    assert stolen.json()["error"]["code"] == "session_expired"

    answer = fill(browser, "/sign-in", email="ADA@example.org", password=PASSWORD)
    assert answer.status_code == 303
    flags = answer.headers["set-cookie"]
    assert "HttpOnly" in flags
    assert "SameSite=lax" in flags
    assert browser.get("/v1/account").json() == account


def test_two_people_have_two_organizations(browser: httpx.Client, service: Service) -> None:
    sign_up(browser, "one@example.org")
    with httpx.Client(base_url=service.base_url, headers=SAME_ORIGIN) as other:
        sign_up(other, "two@example.org")
        mine, theirs = (client.get("/v1/account").json()["organization"]["id"] for client in (browser, other))
    assert mine != theirs


@pytest.mark.parametrize(
    ("email", "password", "says"),
    [
        ("taken@example.org", PASSWORD, "already"),
        ("no-address", PASSWORD, "not an e-mail address"),
        ("new@example.org", "short", "10 to 200 characters"),
        ("new@example.org", "x" * 201, "10 to 200 characters"),
        ("<script>@example.org", "short", "&lt;script&gt;"),
    ],
)
def test_what_cannot_be_an_account_says_why(
    browser: httpx.Client, service: Service, email: str, password: str, says: str
) -> None:
    with httpx.Client(base_url=service.base_url, headers=SAME_ORIGIN) as other:
        sign_up(other, "taken@example.org")
    shown = refusal(browser, "/sign-up", email=email, password=password, name="Ada")
    assert says in shown
    assert 'value="Ada"' in shown
    assert "tunewright_session" not in browser.cookies
    assert "<script>" not in shown
    assert "script-src" not in browser.get("/sign-up").headers["content-security-policy"]


def test_a_form_of_another_site_is_refused(browser: httpx.Client) -> None:
    fields = {"email": "x@example.org", "password": PASSWORD, "name": "X"}
    browser.get("/sign-up")
    for headers, token in (
        (SAME_ORIGIN, ""),
        (SAME_ORIGIN, "0" * 64),
        ({"sec-fetch-site": "cross-site"}, "0" * 64),
    ):
        answer = browser.post("/sign-up", data={**fields, "csrf_token": token}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
    shown = browser.get("/sign-up")
    token = re.search(r'value="(\w{64})"', shown.text)
    assert token is not None
    answer = browser.post("/sign-up", data={**fields, "csrf_token": token[1]}, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    with httpx.Client(base_url=str(browser.base_url), headers=SAME_ORIGIN) as other:
        assert other.post("/sign-up", data={**fields, "csrf_token": token[1]}).status_code == 403


def test_guessing_a_password_is_slowed(browser: httpx.Client) -> None:
    sign_up(browser, "guessed@example.org")
    browser.cookies.clear()
    for _ in range(FAILURES):
        shown = refusal(browser, "/sign-in", email="guessed@example.org", password="wrong password")
        assert "password is wrong" in shown
    for password in ("wrong password", PASSWORD):
        assert "Try again in" in refusal(browser, "/sign-in", email="guessed@example.org", password=password)
    assert "tunewright_session" not in browser.cookies


def test_guesses_from_elsewhere_do_not_lock_out_the_owner(service: Service) -> None:
    """The server believes a proxy on this machine; so each client here comes from where it says."""
    with _from(service, "192.0.2.1") as owner, _from(service, "192.0.2.2") as guesser:
        sign_up(owner, "locked@example.org")
        owner.cookies.clear()
        guess = {"email": "locked@example.org", "password": "wrong password"}
        while "password is wrong" in refusal(guesser, "/sign-in", **guess):
            pass
        answer = fill(owner, "/sign-in", email="locked@example.org", password=PASSWORD)
        assert answer.status_code == 303


def _from(service: Service, address: str) -> httpx.Client:
    return httpx.Client(base_url=service.base_url, headers={**SAME_ORIGIN, "x-forwarded-for": address})


def test_a_changed_password_signs_other_browsers_out(service: Service, browser: httpx.Client) -> None:
    sign_up(browser, "changing@example.org")
    with httpx.Client(base_url=service.base_url, headers=SAME_ORIGIN) as other:
        assert fill(other, "/sign-in", email="changing@example.org", password=PASSWORD).status_code == 303
        token = re.search(r'name="csrf_token" value="(\w{64})"', browser.get("/settings").text)
        assert token is not None
        form = {"csrf_token": token[1], "new": "another horse battery"}
        wrong = browser.post("/settings/password", data={**form, "current": "wrong password"})
        assert (wrong.status_code, "password is wrong" in browser.get("/settings").text) == (303, True)
        short = browser.post("/settings/password", data={**form, "current": PASSWORD, "new": "short"})
        assert (short.status_code, "this one has 5" in browser.get("/settings").text) == (303, True)
        assert other.get("/v1/account").status_code == 200

        changed = browser.post("/settings/password", data={**form, "current": PASSWORD})
        assert changed.headers["location"] == "/settings?changed=password#sign-in"
        assert browser.get("/v1/account").status_code == 200
        assert other.get("/v1/account").status_code == 401
        refusal(other, "/sign-in", email="changing@example.org", password=PASSWORD)
        assert fill(other, "/sign-in", email="changing@example.org", password=form["new"]).status_code == 303

        browser.post("/settings/sign-out-everywhere", data={"csrf_token": token[1]})
        assert (browser.get("/v1/account").status_code, other.get("/v1/account").status_code) == (200, 401)


def test_signing_up_can_be_closed(tmp_path: Path, models_dir: Path, valkey_url: str) -> None:
    settings = Settings(data_dir=tmp_path, models_dir=models_dir, redis_url=valkey_url)
    assert not settings.sign_up_open
    with (
        running_application(settings) as closed,
        httpx.Client(base_url=closed.base_url, headers=SAME_ORIGIN) as browser,
    ):
        assert "<form" not in browser.get("/sign-up").text
        token = re.search(r'value="(\w{64})"', browser.get("/sign-in").text)
        assert token is not None
        fields = {"csrf_token": token[1], "email": "a@example.org", "password": PASSWORD, "name": "A"}
        refused = browser.post("/sign-up", data=fields)
        assert (refused.status_code, refused.headers["location"]) == (303, "/sign-up")
        assert browser.get("/sign-up").text.count("Signing up is closed here.") == 1
