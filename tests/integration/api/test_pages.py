"""Pages without a browser: what is said without the bundle, and to strangers; and forms that are sent twice."""

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import text

from api import pages
from api.dashboard.guide import TITLES
from api.formatting import VERDICTS
from core.accounts import service as accounts
from core.accounts.models import User
from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application
from tests.people import add_user, follow_link


def test_a_stranger_is_asked_to_sign_in(service: Service) -> None:
    for path in ("/", "/new", "/jobs", "/jobs/ftjob-x", "/credits", "/settings", "/compare?job=a&job=b"):
        answer = httpx.get(service.base_url + path)
        wanted = "" if path == "/" else "?next=" + quote(path)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in{wanted}"), path
    shown = {"hx-request": "true", "hx-current-url": f"{service.base_url}/jobs?q=lamp"}
    part = httpx.get(f"{service.base_url}/jobs", headers=shown)
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/sign-in?next=/jobs%3Fq%3Dlamp")


def test_signing_in_ends_on_the_page_that_was_wanted_and_never_elsewhere(service: Service, tenant: Tenant) -> None:
    for wanted, ends in (
        ("/jobs?q=a%26b", "/jobs?q=a%26b"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("https://evil.example/", "/"),
        ("/sign-in?next=/", "/"),
        ("/jobs\N{SNOWMAN}", "/"),
    ):
        with service.runtime.database.transaction() as session:
            token = accounts.create_sign_in_link(session, session.get_one(User, tenant.user_id), 60)
        with httpx.Client(base_url=service.base_url) as browser:
            opened = browser.get("/sign-in", params={"next": wanted})
            form = {"csrf_token": token_of(opened.text), "email": "nobody@example.org", "password": "wrong password"}
            refused = browser.post("/sign-in", data=form, headers={"sec-fetch-site": "same-origin"})
            assert (refused.status_code, browser.get("/sign-in").status_code) == (303, 200)
            assert follow_link(browser, f"/sign-in?token={token}").headers["location"] == ends, wanted
            assert "tunewright_return" not in browser.cookies


def test_what_a_form_says_is_behind_a_redirect_once_and_in_no_address(browser: httpx.Client) -> None:
    form = {"csrf_token": token_of(browser.get("/settings").text)}
    for path, fields, page, said in (
        ("/settings/keys", {"name": "laptop"}, "/settings", "it is shown this once"),
        ("/settings/keys", {"name": "laptop", "days": "soon"}, "/settings", "Days must be a whole number"),
        ("/credits", {"code": "NO-SUCH-CODE"}, "/credits", 'value="NO-SUCH-CODE"'),
        ("/guide", {}, "/guide", "this is the one time it is shown"),
        ("/new/hub?model=tiny", {"name": "no reference"}, "/new?model=tiny", "no reference"),
    ):
        answer = browser.post(path, data=form | fields)
        assert (answer.status_code, answer.headers["location"].partition("#")[0]) == (303, page), path
        assert "tw-" not in str(answer.headers), path
        shown, again = browser.get(page), browser.get(page)
        assert (shown.status_code, said in shown.text, said in again.text) == (200, True, False), path


def test_what_a_form_says_is_for_its_own_session(service: Service, browser: httpx.Client, stranger: Tenant) -> None:
    form = {"csrf_token": token_of(browser.get("/settings").text), "name": "laptop"}
    flash = browser.post("/settings/keys", data=form).cookies["tunewright_flash"]
    with service.runtime.database.transaction() as session:
        token = accounts.create_sign_in_link(session, session.get_one(User, stranger.user_id), 60)
    with httpx.Client(base_url=service.base_url) as other:
        follow_link(other, f"/sign-in?token={token}")
        other.cookies.set("tunewright_flash", flash)
        assert "it is shown this once" not in other.get("/settings").text


def test_an_error_keeps_the_navigation_of_someone_signed_in(browser: httpx.Client) -> None:
    for path, status in (("/nowhere", 404), ("/jobs/ftjob-none", 404), ("/accounts", 403)):
        answer = browser.get(path, headers={"accept": "text/html"})
        assert (answer.status_code, '<nav class="nav"' in answer.text) == (status, True), path
        assert "Sign out" in answer.text


def test_trouble_on_our_side_keeps_the_navigation(tmp_path: Path, models_dir: Path, valkey_url: str) -> None:
    """A row that cannot be read is a 500, a table that is gone a 503: both are pages that lead on."""
    settings = Settings(data_dir=tmp_path, models_dir=models_dir, redis_url=valkey_url)
    with running_application(settings) as service, httpx.Client(base_url=service.base_url) as browser:
        database = service.runtime.database
        with database.transaction() as session:
            user = add_user(session, is_admin=True)
            token = accounts.create_sign_in_link(session, user, 60)
        follow_link(browser, f"/sign-in?token={token}")
        database.run(lambda session: session.execute(text("UPDATE devices SET device = '{}'")))
        broken = browser.get("/fleet", headers={"accept": "text/html"})
        database.run(lambda session: session.execute(text("DROP TABLE fine_tuned_models")))
        away = browser.get("/models", headers={"accept": "text/html"})
        assert away.extensions["network_stream"] is broken.extensions["network_stream"]  # what follows a 500 arrives
    for shown, status, said in (
        (broken, 500, "Something went wrong on our side"), (away, 503, "The database does not answer"),
    ):  # fmt: skip
        assert (shown.status_code, said in shown.text) == (status, True), shown.text
        assert '<nav class="nav"' in shown.text
        assert 'href="/jobs"' in shown.text
        assert "Traceback" not in shown.text
        assert "SQL" not in shown.text


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


def test_help_is_where_the_question_arises_and_its_links_lead_somewhere(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    shown = {f"/guide/{name}": browser.get(f"/guide/{name}").text for name in TITLES}
    assert all(f">{title}</h1>" in page for title, page in zip(TITLES.values(), shown.values(), strict=True))
    asking = [browser.get("/new", params=params).text for params in ({}, {"model": "tiny", "file": rich.upload(rows)})]
    for page in asking:
        assert 'href="/guide/how-much-data"' in page
    assert 'href="/guide/what-to-try-next#nothing-fits' in asking[1]
    linked = {link for page in [*shown.values(), *asking] for link in re.findall(r'href="(/guide/[^"]*)"', page)}
    advice = {f"/guide/what-to-try-next#{words.lower().replace(' ', '-')}" for words, _ in VERDICTS.values()}
    for link in linked | advice:
        path, _, section = link.partition("#")
        assert not section or f'id="{section}"' in shown[path], link
    assert set(shown) <= {link.partition("#")[0] for link in linked}
    assert browser.get("/guide/none").status_code == 404


def test_one_of_a_thing_is_not_said_in_the_plural(browser: httpx.Client, rich: Tenant) -> None:
    row = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]}
    for rows, epochs in ((1, 1), (2, 1), (3, 2)):
        page = {"model": "tiny", "file": rich.upload([row] * rows), "n_epochs": str(epochs), "validation_split": "0"}
        shown = re.sub(r"<[^>]*>", "", browser.get("/new", params=page).text)
        assert f"{rows} row{'s' * (rows > 1)} ·" in shown
        assert rows == 1 or f"in {epochs} epoch{'s' * (epochs > 1)}\n" in shown
        assert re.findall(r"\b1 (?:row|step|epoch|token|credit)s\b", shown) == []


def test_a_name_with_spaces_becomes_a_suffix_and_one_without_letters_is_refused(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    file = rich.upload(rows)
    for name, suffix in (("  Café support: v2! ", "Cafe-support-v2"), ("..a b..", "a-b"), ("x" * 80, "x" * 64)):
        started = browser.post("/new", data=start_form(browser, file) | {"suffix": name})
        job = rich.client.fine_tuning.jobs.retrieve(started.headers["location"].rpartition("/")[2])
        assert job.fine_tuned_model is None
        assert (job.model_extra or {})["suffix"] == suffix
        rich.client.fine_tuning.jobs.cancel(job.id)
    refused = browser.post("/new", data=start_form(browser, file) | {"suffix": "日本"})
    assert not refused.headers.get("location", "").startswith("/jobs/")


def test_presets_fill_the_fields_that_one_could_fill(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    page = {"model": "tiny", "file": rich.upload(rows), "seed": "3", "method": "qlora", "n_epochs": "9"}
    shown = browser.get("/new", params=page).text
    for label, expected in (
        ("Quick", {"priority": "economy", "n_epochs": "1"}),
        ("Balanced", {}),
        ("Best", {"priority": "quality"}),
    ):
        link = re.search(rf'href="([^"#]*)#step-plan"( aria-current="true")?><strong>{label}<', shown)
        assert link is not None
        assert link.group(2) is None
        shown = browser.get(html.unescape(link.group(1))).text
        agreed = {name: value for name, value in form_of(shown).items() if name in ("priority", "n_epochs", "method")}
        assert agreed == expected
        assert form_of(shown)["seed"] == "3"
        assert re.search(rf'aria-current="true"><strong>{label}<', shown)


def test_a_plan_that_has_changed_is_shown_again(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    form = start_form(browser, rich.upload(rows)) | {"fingerprint": "0" * 16}
    answer = browser.post("/new", data=form | {"suffix": "lamps"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"/new?model=tiny&file={form['file']}")
    shown = browser.get(answer.headers["location"]).text
    assert "The plan has changed" in shown
    assert 'value="lamps"' in shown
    assert "The plan has changed" not in browser.get(answer.headers["location"]).text
    assert rich.client.fine_tuning.jobs.list().data == []


def test_what_is_wrong_is_said_at_its_field(browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]) -> None:
    page = {"model": "tiny", "file": rich.upload(rows)}
    for field, value, said in (
        ("exact_match.column", "answer", "leave the other fields of exact match empty"),
        ("exact_match.rows", "none", "Rows answered must be a whole number; got"),
        ("r", "0", "Rank must be"),
        ("max_length", "99999999", "Max sequence length"),
        ("lora_dropout", "2", "Dropout"),
        ("per_device_train_batch_size", "0", "Micro-batch size"),
        ("modules_to_save", "nose", "modules_to_save"),
        ("validation_split", "0.5.5", "Held out"),
        ("early_stopping_patience", "0", "Early stopping"),
        ("n_epochs", "0", "Epochs"),
    ):
        extract = {} if field == "exact_match.column" else {"exact_match.extract": "text"}
        shown = browser.get("/new", params={**page, **extract, field: value}).text
        at = field if extract else "exact_match.extract"
        place = re.search(rf'data-says="wrong-{re.escape(at)}" class="wrong">([^<]*)', shown)
        assert place is not None, field
        assert said in place.group(1)
        assert re.search(rf'name="{re.escape(at)}"[^>]*aria-invalid="true"', shown), field


def test_a_run_with_changes_keeps_its_exact_match(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    asked = {"extract": "last_number", "column": "reference", "rows": 4, "max_new_tokens": 9}
    file = rich.upload([{**row, "reference": "7"} for row in rows])
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=file, extra_body={"exact_match": asked})
    rich.client.fine_tuning.jobs.cancel(job.id)
    again = re.search(r'href="(/new[?][^"]*seed=[^"]*)"', browser.get(f"/jobs/{job.id}").text)
    assert again is not None
    address = html.unescape(again.group(1))
    assert "column_reference" not in address
    form = form_of(browser.get(address).text)
    assert {name: form[f"exact_match.{name}"] for name in asked} == {n: str(value) for n, value in asked.items()}
    started = browser.post("/new", data=form)
    kept = rich.client.fine_tuning.jobs.retrieve(started.headers["location"].rpartition("/")[2])
    assert kept.model_extra["exact_match"] == asked


def test_lists_are_fetched_anew_and_say_only_what_is_so(
    browser: httpx.Client, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows), suffix="lamps")
    for path, part in (("/", "start"), ("/jobs", "job-list"), ("/fleet", "fleet"), ("/models?q=a", "model-list")):
        shown = browser.get(path).text
        assert f'id="{part}" hx-get="{path}" hx-trigger="every 5s"' in shown, path
    assert 'id="movements" hx-get="/credits"' in browser.get("/credits").text
    assert "<title>1 under way · Jobs" in browser.get("/jobs").text
    shown = browser.get(f"/jobs/{job.id}").text
    assert "Waiting for the first step" in shown
    assert " data-over" not in shown
    assert ("created <time" in shown, "started <time" in shown) == (True, False)
    rich.client.fine_tuning.jobs.cancel(job.id)
    part = browser.get(f"/jobs/{job.id}", headers={"hx-request": "true", "hx-target": "job-live"}).text
    assert "<title>Cancelled · lamps · Tunewright</title>" in part
    assert 'id="job-live" aria-label="Progress" data-over' in part  # for "No step was taken."


def token_of(shown: str) -> str:
    """What the forms of a shown page carry."""
    return re.findall(r'name="csrf_token" value="(\w{64})"', shown)[0]


def start_form(browser: httpx.Client, file_id: str) -> dict[str, str]:
    """What the start form of the plan page would send."""
    return form_of(browser.get("/new", params={"model": "tiny", "file": file_id}).text)


def form_of(shown: str) -> dict[str, str]:
    """What the start form of a shown page would send."""
    form = shown[shown.index('id="start"') :]
    return dict(re.findall(r'<input type="hidden" name="([\w.]+)" value="([^"]*)">', form[: form.index("</form>")]))
