"""Who may call: keys, browser sessions, and other sites' pages."""

import html
import re
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from core.accounts import queries
from core.accounts import service as accounts
from core.accounts.models import Organization, User
from core.fleet import programs
from core.fleet.models import ProgramStatus
from core.fleet.programs import ProgramState
from core.ids import new_id
from core.ledger import codes
from tests.integration.api.server import Service, Tenant
from tests.people import follow_link


def link(service: Service, tenant: Tenant) -> str:
    """The token of a sign-in link."""
    with service.runtime.database.transaction() as session:
        return accounts.create_sign_in_link(session, session.get_one(User, tenant.user_id), 60)


@pytest.fixture
def browser(service: Service, tenant: Tenant) -> Iterator[httpx.Client]:
    """A browser that has opened a sign-in link."""
    with httpx.Client(base_url=service.base_url) as browser:
        answer = follow_link(browser, f"/sign-in?token={link(service, tenant)}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        yield browser


@pytest.mark.parametrize("header", [None, "Bearer tw-unknown", "Basic dXNlcjpwYXNz", "Bearer"])
def test_no_valid_key_is_401(service: Service, header: str | None) -> None:
    headers = {"authorization": header} if header else {}
    for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("POST", "/v1/fine_tuning/jobs")):
        answer = httpx.request(method, f"{service.base_url}{path}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_key_is_shown_once_works_and_is_revoked(tenant: Tenant) -> None:
    created = tenant.http.post("/v1/api_keys", json={"name": "ci"}).json()
    headers = {"authorization": f"Bearer {created['secret']}"}

    account = tenant.http.get("/v1/account", headers=headers).json()
    listed = tenant.http.get("/v1/api_keys").json()["data"]
    assert account["organization"]["id"] == tenant.organization_id
    assert listed[0]["last_used_at"] is not None
    assert created["secret"] not in str(listed)
    assert created["secret"].startswith(listed[0]["prefix"])

    assert tenant.http.delete(f"/v1/api_keys/{created['id']}").json()["deleted"]
    revoked = tenant.http.get("/v1/account", headers=headers)
    assert (revoked.status_code, revoked.json()["error"]["code"]) == (401, "invalid_api_key")


def test_key_of_another_organization_cannot_be_revoked(tenant: Tenant, stranger: Tenant) -> None:
    key_id = tenant.http.get("/v1/api_keys").json()["data"][0]["id"]
    answer = stranger.http.delete(f"/v1/api_keys/{key_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "api_key_not_found")


def test_a_key_made_with_a_key_ends_with_it(tenant: Tenant) -> None:
    soon = int(time.time()) + 60
    parent = tenant.http.post("/v1/api_keys", json={"name": "parent", "expires_at": soon}).json()
    headers = {"authorization": f"Bearer {parent['secret']}"}
    later = tenant.http.post("/v1/api_keys", json={"name": "later", "expires_at": soon + 1}, headers=headers)
    assert (later.status_code, later.json()["error"]["param"]) == (400, "expires_at")
    child = tenant.http.post("/v1/api_keys", json={"name": "child"}, headers=headers).json()
    assert child["expires_at"] == soon
    headers = {"authorization": f"Bearer {child['secret']}"}
    grandchild = tenant.http.post("/v1/api_keys", json={"name": "grandchild"}, headers=headers).json()

    tenant.http.delete(f"/v1/api_keys/{parent['id']}")
    for key in (parent, child, grandchild):
        answer = tenant.http.get("/v1/account", headers={"authorization": f"Bearer {key['secret']}"})
        assert answer.status_code == 401, key["name"]
    assert tenant.http.get("/v1/account").status_code == 200


def test_an_administrator_disables_and_enables_an_account(service: Service, tenant: Tenant) -> None:
    _, admin_id, _ = service.enrol(is_admin=True)
    with service.runtime.database.transaction() as session:
        token = accounts.create_sign_in_link(session, session.get_one(User, admin_id), 60)
        invitation = accounts.create_sign_in_link(session, session.get_one(User, tenant.user_id), 60)
    with httpx.Client(base_url=service.base_url, headers={"sec-fetch-site": "same-origin"}) as admin:
        follow_link(admin, f"/sign-in?token={token}")
        page = admin.get("/accounts", params={"q": tenant.organization_id}).text
        assert tenant.user_id in page
        found = re.search(r'name="csrf_token" value="(\w{64})"', page)
        assert found is not None
        form = {"csrf_token": found[1]}

        def press(user_id: str, button: str) -> str:
            answer = admin.post(f"/accounts/{user_id}/{button}?q=Test", data=form)
            assert answer.headers["location"] == "/accounts?q=Test"
            return admin.get("/accounts?q=Test").text

        assert "is disabled and signed out" in press(tenant.user_id, "disable")
        assert tenant.http.get("/v1/account").json()["error"]["code"] == "account_disabled"
        refused = follow_link(admin, f"/sign-in?token={invitation}")
        assert (refused.status_code, refused.headers["location"]) == (303, "/sign-in")
        assert "This account is disabled" in admin.get("/sign-in").text
        assert "own account" in press(admin_id, "disable")

        assert "can sign in again" in press(tenant.user_id, "enable")
        assert tenant.http.get("/v1/account").status_code == 200
        assert "/sign-in?token=" in press(tenant.user_id, "link")
        assert admin.post("/accounts/user-none/link", data=form).status_code == 404


def test_an_administrator_invites_someone_and_sets_their_limits(service: Service) -> None:
    _, admin_id, _ = service.enrol(is_admin=True)
    with service.runtime.database.transaction() as session:
        token = accounts.create_sign_in_link(session, session.get_one(User, admin_id), 60)
    headers = {"sec-fetch-site": "same-origin"}
    with (
        httpx.Client(base_url=service.base_url, headers=headers) as admin,
        httpx.Client(base_url=service.base_url, headers=headers) as invited,
    ):
        follow_link(admin, f"/sign-in?token={token}")
        form = {"csrf_token": re.findall(r'name="csrf_token" value="(\w{64})"', admin.get("/accounts").text)[0]}
        person = {"email": f"{new_id('ada-').lower()}@example.org", "name": "Ada & Sons"}

        def invite(**changes: str) -> str:
            answer = admin.post("/accounts/new", data=form | person | changes)
            assert (answer.status_code, answer.headers["location"]) == (303, "/accounts")
            return html.unescape(admin.get("/accounts").text)

        assert "not an e-mail address" in invite(email="nobody")
        link = re.search(r"/sign-in\?token=[\w-]+", invite())
        assert link is not None
        page = invite()
        assert "an account with this e-mail address already" in page
        assert f'value="{person["email"]}"' in page, "what was typed is kept"
        follow_link(invited, link[0])
        settings = invited.get("/settings").text
        assert "New password" in settings
        assert "Current password" not in settings, "there is none yet"
        assert invited.get("/accounts").status_code == 403

        with service.runtime.database.read() as session:
            user = queries.user_by_email(session, person["email"])
            assert user is not None
        path = f"/accounts/{user.id}/limits"
        assert "Limits of Ada & Sons" in html.unescape(admin.get(path).text)
        for wrong in ({"running_jobs": "1.5"}, {"storage_gib": "-1"}, {"upload_gib": "nan"}, {"queued_jobs": "²"}):
            assert admin.post(path, data=form | wrong).headers["location"] == path
            assert f"{next(iter(wrong))} is a" in admin.get(path).text
        changed = admin.post(path, data=form | {"running_jobs": "2", "storage_gib": "1.5"})
        assert changed.headers["location"] == "/accounts"
        with service.runtime.database.read() as session:
            own = session.get_one(Organization, user.organization_id)
            assert (own.max_running_jobs, own.max_queued_jobs) == (2, None)
            assert (own.max_storage_bytes, own.max_upload_bytes) == (3 * 1024**3 // 2, None)
        assert 'value="1.5"' in admin.get(path).text
        assert invited.get(path).status_code == 403
        assert admin.get("/accounts/user-none/limits").status_code == 404


def test_what_takes_something_away_asks_first_and_says_whether_it_can_be_undone(
    service: Service, tenant: Tenant, stranger: Tenant
) -> None:
    states = [ProgramState("worker-cpu", ProgramStatus.DRAINED), ProgramState("api", ProgramStatus.RUNNING, 12)]
    with service.runtime.database.transaction() as session:
        _, admin_id, _ = service.enrol(is_admin=True)
        admin_user = session.get_one(User, admin_id)
        token = accounts.create_sign_in_link(session, admin_user, 60)
        key = accounts.create_api_key(session, admin_user, "old laptop").key.id
        foreign = accounts.create_api_key(session, session.get_one(User, stranger.user_id), "theirs").key.id
        code = codes.create_code(session, new_id("ASKED-"), 5).code
        programs.report_programs(session, "here", states)
    with httpx.Client(base_url=service.base_url, headers={"sec-fetch-site": "same-origin"}) as admin:
        follow_link(admin, f"/sign-in?token={token}")
        form = {"csrf_token": re.findall(r'name="csrf_token" value="(\w{64})"', admin.get("/settings").text)[0]}
        for path, said in (
            (f"/accounts/{tenant.user_id}/disable", "Enabling undoes it"),
            (f"/settings/keys/{key}/revoke", "This cannot be undone"),
            (f"/settings/codes/{code}/disable", "Enabling undoes it"),
        ):
            asked = admin.get(path)
            assert (asked.status_code, said in asked.text, f'action="{path}"' in asked.text) == (200, True, True), path
        assert admin.get(f"/settings/keys/{foreign}/revoke").status_code == 404
        for button, state in (("disable", "disabled"), ("enable", "works")):
            assert admin.post(f"/settings/codes/{code}/{button}", data=form).status_code == 303
            assert f'data-label="State">{state}' in admin.get("/settings").text

        assert "Start worker-cpu again" in admin.get("/fleet").text
        for name, said in (("worker-cpu", "is started again in a moment"), ("api", "only a drained program")):
            admin.post("/fleet/start", data={**form, "hostname": "here", "name": name})
            assert said in admin.get("/fleet").text
    with service.runtime.database.transaction() as session:
        programs.report_programs(session, "here", states)  # as after any other change on that machine
        assert programs.requested_starts(session, "here") == ["worker-cpu"]
        programs.report_programs(session, "here", [ProgramState("worker-cpu", ProgramStatus.RUNNING, 13)])
        assert programs.requested_starts(session, "here") == []
        programs.report_programs(session, "here", [])


def test_accounts_are_the_administrators_alone(browser: httpx.Client) -> None:
    assert browser.get("/accounts").status_code == 403
    assert 'href="/accounts"' not in browser.get("/settings").text


def test_link_signs_in_once(service: Service, tenant: Tenant) -> None:
    address = f"/sign-in?token={link(service, tenant)}"
    with httpx.Client(base_url=service.base_url) as scanner, httpx.Client(base_url=service.base_url) as browser:
        assert scanner.get(address).status_code == 200  # whoever only looks at the link does not spend it
        opened = scanner.get(address).text
        first = follow_link(browser, address)
        second = follow_link(scanner, address)
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', opened))
        late = scanner.post("/sign-in/link", data=fields, headers={"sec-fetch-site": "same-origin"})
        assert (late.status_code, late.headers["location"]) == (303, "/sign-in")
        assert "This link has expired" in scanner.get("/sign-in").text
        shown = scanner.get(address, headers={"accept": "text/html"})
        assert (shown.status_code, "<h1>This link has expired</h1>" in shown.text) == (403, True)

    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert (second.status_code, second.json()["error"]["code"]) == (403, "sign_in_link_spent")
    assert "set-cookie" not in second.headers


def test_session_reads_and_our_own_pages_write(tenant: Tenant, browser: httpx.Client, service: Service) -> None:
    assert browser.get("/v1/account").json()["user"]["id"] == tenant.user_id
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": service.base_url}):
        assert browser.post("/v1/api_keys", json={"name": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none", "origin": "https://evil.example"},
    ],
)
def test_other_sites_cannot_use_the_session(tenant: Tenant, browser: httpx.Client, headers: dict[str, str]) -> None:
    answer = browser.post("/v1/api_keys", json={"name": "x"}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
    assert [key["name"] for key in tenant.http.get("/v1/api_keys").json()["data"]] == ["test"]


def test_unknown_session_is_401(service: Service) -> None:
    answer = httpx.get(f"{service.base_url}/v1/account", cookies={"tunewright_session": "unknown"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "session_expired")


def test_account_and_its_fleet(tenant: Tenant) -> None:
    assert tenant.http.get("/v1/account").json()["user"]["name"] == "Tester"
    (worker,) = tenant.http.get("/v1/workers").json()["data"]
    assert (worker["hostname"], worker["is_busy"]) == ("test-host", False)
    (device,) = worker["devices"]
    assert (device["name"], device["address"], device["device_class"]) == ("Test CPU", "cpu", "cpu")


def test_credits_are_redeemed_and_every_movement_is_listed(service: Service, tenant: Tenant) -> None:
    for number in range(3):
        name = f"C{number}-{tenant.organization_id}"
        service.runtime.database.run(lambda session, name=name: codes.create_code(session, name, 100))
        redeemed = tenant.http.post("/v1/credits/redemptions", json={"code": f"  {name.lower()} "}).json()
        assert (redeemed["code"], redeemed["credits"]) == (name.upper(), 100)

    assert tenant.http.get("/v1/credits").json() == {"object": "credits", "available": 300, "held": 0}
    first = tenant.http.get("/v1/credits/transactions", params={"limit": 2}).json()
    second = tenant.http.get("/v1/credits/transactions", params={"after": first["last_id"]}).json()
    amounts = [item["amount"] for page in (first, second) for item in page["data"]]
    assert (first["has_more"], second["has_more"], amounts) == (True, False, [100, 100, 100])


def test_models_are_listed_with_what_is_at_hand(tenant: Tenant) -> None:
    models = {model.id: model for model in tenant.client.models.list()}
    assert models["tiny"].object == "model"
    assert "smollm2-135m-instruct" in models
    starter = tenant.client.models.retrieve("smollm2-135m-instruct")
    assert starter.owned_by == "catalogue"
    base = tenant.http.get("/v1/models/smollm2-135m-instruct").json()["base"]
    assert (base["hub_id"], base["parameters"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008)
    assert (base["availability"], base["download_bytes"]) == ("unreachable", 269_030_016)
    assert "offline" in base["problem"]
    assert base["fits"]["is_useful"]
    assert base["fits"]["estimated_seconds"] > 60
    assert models["tiny"].model_extra is not None
    assert models["tiny"].model_extra["base"]["availability"] == "local"
    with pytest.raises(openai.NotFoundError) as unknown:
        tenant.client.models.retrieve("acme/unknown")
    assert unknown.value.code == "model_not_found"
