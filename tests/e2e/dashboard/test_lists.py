"""Lists of jobs and models: sorted by address, compared, run again, deleted."""

import re

import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Page, expect

from tests.e2e.dashboard.visitor import Visitor
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service


@pytest.fixture(scope="module")
def second(service: Service) -> FineTuningJob:
    """Another job that has succeeded, shorter and worse."""
    job = service.create_job(chat_rows(), suffix="second", hyperparameters={"n_epochs": 1})
    return service.wait(job.id, "succeeded")


def column(page: Page, name: str) -> list[str]:
    """What the list's rows have in a column, those of jobs without a name aside."""
    heads = page.locator("thead th").all_inner_texts()
    rows = page.locator("tbody tr").filter(has_text=re.compile("colours|second"))
    return rows.locator(f":scope > :nth-child({heads.index(name) + 1})").all_inner_texts()


def test_lists_are_sorted_by_address(
    visitor: Visitor, service: Service, finished: FineTuningJob, second: FineTuningJob
) -> None:
    for path, heads in (("/jobs?group=succeeded", ("Loss", "Name")), ("/models", ("Loss", "Model"))):
        page = visitor.open(path)
        for head in heads:
            page.get_by_role("link", name=head, exact=True).click()
            expect(page.locator("th[aria-sort=ascending]")).to_have_text(head)
            ascending = column(page, head)
            assert ascending == sorted(ascending, key=str.lower)
            page.get_by_role("link", name=head, exact=True).click()
            expect(page.locator("th[aria-sort=descending]")).to_have_text(head)
            page.reload()
            assert column(page, head) == ascending[::-1]
        assert "order=desc" in page.url
    page = visitor.open("/jobs?sort=loss")
    page.get_by_label("Search").fill("second")
    expect(page.get_by_role("link", name="colours")).to_have_count(0)
    assert "sort=loss" in page.url, "a search keeps the order"
    page = visitor.open("/models?base=tiny")
    expect(page.get_by_label("Base model")).to_have_value("tiny")


def test_a_run_is_compared_with_one_that_was_run_again_with_changes(
    visitor: Visitor, service: Service, finished: FineTuningJob
) -> None:
    page = visitor.open(f"/jobs/{finished.id}")
    page.get_by_role("link", name="Run with changes").click()
    asked = {"n_epochs": "3", "seed": "7"}
    for name, value in asked.items():
        expect(page.locator(f"#options [name={name}]"), "what was asked for stays").to_have_value(value)
    for name in ("method", "r", "learning_rate", "warmup_ratio", "max_length", "gradient_checkpointing"):
        expect(page.locator(f"#options [name={name}]"), "the rest is planned again").to_have_value("")
    page.get_by_label("Epochs").fill("1")
    expect(page.locator("#plan")).to_contain_text("in 1 epoch")
    page.get_by_label("Name optional").fill("again")
    page.locator("#start-button").click()
    page.wait_for_url("**/jobs/ftjob-*")
    expect(page.locator("#job-live .badge")).to_have_text("Succeeded")
    again = service.client.fine_tuning.jobs.retrieve(page.url.rpartition("/")[2])
    assert again.seed == finished.seed

    page.get_by_role("link", name="Compare").click()
    page.get_by_role("link", name=re.compile("^colours")).first.click()
    differing = page.get_by_role("region", name="What differs")
    expect(differing.get_by_role("row", name=re.compile("^Epochs"))).to_have_text(re.compile("1.*3"))
    expect(differing.get_by_role("row", name=re.compile("^(Rank|Seed|Learning rate)"))).to_have_count(0)
    page.get_by_text("What is the same").click()
    same = page.get_by_role("region", name="What is the same")
    expect(same.get_by_role("row", name=re.compile("^Method"))).to_contain_text("LoRA")
    file = same.get_by_role("row", name=re.compile("^Training data")).get_by_role("link", name="rows.jsonl").first
    expect(file).to_have_attribute("href", f"/new?file={finished.training_file}")
    rows = page.locator("run-chart").evaluate("chart => chart.points.rows")
    assert any(row[1] is not None and row[3] is not None for row in rows), "both curves are there"


def test_deleting_says_what_goes_and_what_stays(visitor: Visitor, service: Service) -> None:
    job = service.create_job(chat_rows(), suffix="short-lived", hyperparameters={"n_epochs": 1})
    model = service.wait(job.id, "succeeded").fine_tuned_model
    page = visitor.open("/models")
    page.get_by_role("link", name=f"Delete {model}").click()
    expect(page.locator("main")).to_contain_text("The job that made it stays")
    page.get_by_role("button", name="Delete the model").click()
    expect(page).to_have_title("Models · Tunewright")
    expect(page.get_by_role("link", name=f"Delete {model}")).to_have_count(0)

    page = visitor.open(f"/jobs/{job.id}")
    page.get_by_role("link", name="Delete").click()
    expect(page.locator("main")).to_contain_text("adapter.zip")
    expect(page.locator("main")).to_contain_text("books, which are never rewritten")
    page.get_by_role("button", name="Delete the job").click()
    expect(page).to_have_title("Jobs · Tunewright")
    expect(page.locator("#job-list")).not_to_contain_text("short-lived")
    page = visitor.open("/credits")
    expect(page.get_by_role("row", name=re.compile(job.id[-8:])).first).to_be_visible()
    page.locator(f"a[href='/jobs/{job.id}']").first.click()
    expect(page.get_by_role("alert")).to_contain_text("No fine-tuning job")


def test_a_job_that_runs_cannot_be_deleted(visitor: Visitor, service: Service) -> None:
    job = service.create_job(chat_rows(), hyperparameters={"n_epochs": 100})
    page = visitor.open(f"/jobs/{job.id}/delete")
    expect(page.get_by_role("button", name="Delete the job")).to_be_disabled()
    expect(page.locator("main")).to_contain_text("Only finished jobs")
    service.client.fine_tuning.jobs.cancel(job.id)
    service.wait(job.id, "cancelled")
