"""What people do with the dashboard, from signing in to an adapter on disk, in a real browser."""

import json
import re
import signal
import zipfile
from pathlib import Path

import httpx
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Page, expect

from tests.e2e.dashboard.visitor import Visitor
from tests.e2e.rows import chat_rows
from tests.e2e.service import CREDIT_CODE, Service
from tests.waiting import wait_for


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """The rows as JSON Lines."""
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def choose(visitor: Visitor, data: Path, model: str = "tiny") -> Page:
    """Go to a new fine-tune, choose the model and upload the data."""
    page = visitor.open("/new")
    page.get_by_label("Search the catalogue").fill(model)
    page.get_by_role("link", name=re.compile(rf"^{model}\b")).click()
    page.get_by_label("Data file").set_input_files(data)
    page.wait_for_url("**file=file-*")
    return page


def points(page: Page) -> list[int]:
    """The steps that the loss chart holds, in its order, evaluations aside."""
    return page.locator("run-chart").first.evaluate(
        "chart => chart.points.rows.filter(r => r[1] !== null).map(r => r[0])"
    )


def test_a_person_gets_from_signing_in_to_an_adapter(newcomer: Visitor, tmp_path: Path) -> None:
    expect(newcomer.page).to_have_title("Home · Tunewright")
    page = choose(newcomer, write_rows(tmp_path / "rows.jsonl", chat_rows()))
    expect(page.locator(".verdict")).to_contain_text("LoRA")
    expect(page.get_by_text("32 rows")).to_be_visible()

    page.get_by_text("Adjust", exact=True).click()
    page.get_by_label("Epochs").fill("3")
    expect(page.locator("#plan")).to_contain_text("in 3 epochs")
    page.wait_for_url("**n_epochs=3**")
    page.get_by_label("Name optional").fill("colours")
    page.get_by_label("Credit code").fill(CREDIT_CODE.lower())
    page.locator("#start-button").click()
    page.wait_for_url("**/jobs/ftjob-*")
    expect(page.locator("#job-live .badge")).to_have_text("Succeeded")

    expect(page.locator("#job-results")).to_contain_text("Before and after")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the adapter").click()
    download.value.save_as(tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as archive:
        assert json.loads(archive.read("adapter_config.json"))["base_model_name_or_path"] == "tiny"
    steps = points(page)
    assert steps == list(range(1, len(steps) + 1))
    newcomer.open("/models")
    expect(newcomer.page.get_by_role("row", name=re.compile("ft:tiny:.*colours"))).to_be_visible()


def test_no_point_is_missed_or_doubled_through_pause_reload_and_a_lost_service(
    service: Service, visitor: Visitor
) -> None:
    job = service.create_job(chat_rows(), suffix="long", hyperparameters={"n_epochs": 30})
    page = visitor.open(f"/jobs/{job.id}")
    wait_for(lambda: len(points(page)) > 5, what="the first points")

    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#job-live .badge")).to_have_text("Paused")
    seen = len(points(page))
    page.get_by_role("button", name="Resume").click()
    wait_for(lambda: len(points(page)) > seen + 3, what="points after the pause")
    page.reload()

    # The page does not move again from here on: its connection breaks, and it catches up by itself.
    port = service.base_url.rpartition(":")[2]
    service.stop("api", signal.SIGKILL)
    expect(page.locator("#offline")).to_be_visible()
    command = ("uvicorn", "api.app:create_app", "--factory", "--port", port, "--log-level", "warning")
    service.start("api", *command)
    expect(page.locator("#job-live .badge")).to_have_text("Succeeded")
    expect(page.locator("#offline")).to_be_hidden()

    data = [event.data for event in service.client.fine_tuning.jobs.list_events(job.id, limit=1000) if event.data]
    recorded = sorted(one["step"] for one in data if one.get("valid_loss") is None)
    assert len(recorded) < 1000, "as many as are drawn without thinning"
    assert points(page) == recorded
    visitor.complaints.clear()  # the browser told of the refused connections


def test_cancelling_says_what_it_costs_first(service: Service, visitor: Visitor) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 100})
    page = visitor.open(f"/jobs/{job.id}")
    page.get_by_role("link", name="Cancel").click()
    expect(page.locator("main")).to_contain_text("It is charged what it has used")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#job-live .badge")).to_have_text("Cancelled")


def test_the_plan_follows_as_one_types(visitor: Visitor, service: Service) -> None:
    page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}")
    page.get_by_text("Adjust", exact=True).click()
    page.get_by_role("textbox", name="Rank").fill("64")
    expect(page.locator(".verdict")).to_contain_text("rank 64")
    page.get_by_label("Method").select_option("full")
    expect(page.locator("#plan")).to_contain_text("lora_rank is set")
    expect(page.locator("#start-button")).to_be_disabled()
    page.get_by_role("textbox", name="Rank").fill("")
    expect(page.locator(".verdict")).to_have_text("Full fine-tuning")
    page.reload()
    expect(page.get_by_label("Method")).to_have_value("full")
    page.get_by_label("Epochs").fill("many")
    expect(page.get_by_role("alert")).to_contain_text("n_epochs must be a whole number")


def test_a_file_with_broken_rows_says_which(visitor: Visitor, tmp_path: Path) -> None:
    rows = [*chat_rows(4), {"messages": [{"role": "user", "content": "No answer follows"}, {"role": "wizard"}]}]
    page = choose(visitor, write_rows(tmp_path / "broken.jsonl", rows))
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("Row 5")


def test_an_empty_file_is_refused_where_it_was_dropped(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.open("/new")
    (tmp_path / "empty.jsonl").write_text("")
    page.get_by_label("Data file").set_input_files(tmp_path / "empty.jsonl")
    expect(page.get_by_role("alert")).to_contain_text("is empty")


def test_columns_that_mean_nothing_can_be_mapped(visitor: Visitor, tmp_path: Path) -> None:
    rows = [{"frage": f"Wo ist {n}?", "antwort": f"Dort ist {n}.", "notiz": "x"} for n in range(8)]
    page = choose(visitor, write_rows(tmp_path / "spalten.jsonl", rows))
    page.locator("[name=column_prompt]").select_option("frage")
    page.locator("[name=column_completion]").select_option("antwort")
    page.get_by_role("button", name="Use these columns").click()
    expect(page.locator(".verdict")).to_be_visible()
    page.get_by_text("What the model will read").click()
    expect(page.locator("mark").first).to_contain_text("Dort ist 0.")


def test_without_credits_the_page_says_so_and_keeps_what_was_typed(newcomer: Visitor, tmp_path: Path) -> None:
    page = choose(newcomer, write_rows(tmp_path / "rows.jsonl", chat_rows()))
    page.get_by_label("Name optional").fill("kept")
    page.locator("#start-button").click()
    expect(page.get_by_role("alert").first).to_contain_text("0 are available")
    expect(page.get_by_label("Name optional")).to_have_value("kept")


def test_where_nothing_fits_every_bar_shows_why(visitor: Visitor, service: Service) -> None:
    page = visitor.open(f"/new?model=huge&file={service.upload(chat_rows())}")
    expect(page.get_by_role("alert")).to_contain_text("What would fit:")
    expect(page.locator(".bars .bar")).to_have_count(3)
    expect(page.locator(".bars")).to_contain_text("too much")
    expect(page.locator("#start-button")).to_be_disabled()


def test_a_code_is_redeemed_once(newcomer: Visitor) -> None:
    page = newcomer.open("/credits")
    for code, said in (("NONESUCH", "No such credit code"), (CREDIT_CODE, "100,000 credits"), (CREDIT_CODE, "already")):
        page.get_by_role("textbox", name="Code").fill(code)
        page.get_by_role("button", name="Redeem").click()
        expect(page.locator(".notice")).to_contain_text(said)
    expect(page.get_by_role("row", name=re.compile("Code redeemed"))).to_contain_text("100,000")


def test_a_key_is_shown_once_and_works_until_it_is_revoked(service: Service, visitor: Visitor) -> None:
    page = visitor.open("/settings")
    page.get_by_label("Name", exact=True).fill("from the dashboard")
    page.get_by_role("button", name="Make a key").click()
    secret = page.locator("#new-key").inner_text()
    header = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{service.base_url}/v1/account", headers=header).status_code == 200
    page = visitor.open("/settings")
    expect(page.locator("main")).not_to_contain_text(secret)
    page.get_by_role("link", name="Revoke from the dashboard").click()
    page.get_by_role("button", name="Revoke the key").click()
    page.wait_for_url("**/settings#keys")
    assert httpx.get(f"{service.base_url}/v1/account", headers=header).status_code == 401


def test_jobs_are_found_and_two_are_compared(service: Service, visitor: Visitor, finished: FineTuningJob) -> None:
    other = service.create_job(chat_rows(), suffix="other", hyperparameters={"n_epochs": 1})
    service.wait(other.id, "succeeded")
    page = visitor.open("/jobs")
    page.get_by_label("Search").fill("colo")
    expect(page.get_by_role("link", name="other")).to_have_count(0)
    page.get_by_label("Search").fill("o")
    expect(page.get_by_role("link", name="other")).to_be_visible()
    page.get_by_label("Compare colours").first.check()
    page.get_by_label("Compare other").check()
    page.get_by_role("button", name="Compare the two chosen").click()
    expect(page.get_by_role("row", name=re.compile("^Epochs"))).to_be_visible()
    assert page.locator("run-chart").evaluate("chart => chart.points.rows.length") > 3


def test_what_belongs_to_others_is_not_there(newcomer: Visitor, finished: FineTuningJob) -> None:
    for path in ("", "/cancel", "/stream", "/files/adapter.zip"):
        answer = newcomer.page.request.get(f"{newcomer.service.base_url}/jobs/{finished.id}{path}")
        assert answer.status == 404, path
    compared = newcomer.page.request.get(f"{newcomer.service.base_url}/compare?job={finished.id}&job={finished.id}")
    assert compared.status == 404
    page = newcomer.open(f"/jobs/{finished.id}")
    expect(page.get_by_role("alert")).to_contain_text("No fine-tuning job")
    expect(page.locator("main")).to_contain_text("request req_")


def test_a_form_without_its_token_changes_nothing(service: Service, visitor: Visitor, finished: FineTuningJob) -> None:
    forms = (
        "/new",
        "/credits",
        "/settings/keys",
        f"/jobs/{finished.id}/cancel",
        f"/jobs/{finished.id}/delete",
        "/models/delete",
        "/guide",
        "/fleet/x/drain",
    )
    for path in forms:
        answer = visitor.page.request.post(
            service.base_url + path,
            form={"code": CREDIT_CODE, "name": "x", "model": "x"},
            headers={"origin": service.base_url},
        )
        assert answer.status == 403, path
