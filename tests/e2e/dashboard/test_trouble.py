"""A worker that is lost, and one that is sent away: the page says so in plain words, and the job goes on."""

import signal

from playwright.sync_api import expect

from tests.e2e.dashboard.test_paths import points
from tests.e2e.dashboard.visitor import Visitor
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service
from tests.waiting import wait_for


def test_a_lost_worker_is_told_and_its_job_goes_on(service: Service, visitor: Visitor) -> None:
    job = service.create_job(chat_rows(), suffix="orphan", hyperparameters={"n_epochs": 20})
    page = visitor.open(f"/jobs/{job.id}")
    wait_for(lambda: len(points(page)) > 3, what="the first points")
    service.stop("worker", signal.SIGKILL)
    expect(page.locator("#job-live .badge")).to_have_text("Waiting for a device")
    expect(page.locator(".log")).to_contain_text("Its worker was lost; going on from the last checkpoint")
    expect(page.locator("#job-live")).to_contain_text("Goes on from its last checkpoint.")
    expect(page.locator("#job-live")).to_contain_text("no worker of its kind is there")

    service.start_worker()
    expect(page.locator("#job-live .badge")).to_have_text("Succeeded")
    expect(page.locator(".log")).to_contain_text("Fine-tuning job goes on")
    steps = points(page)
    assert steps == list(range(1, len(steps) + 1)), "no point is missing or doubled, those trained again included"


def test_a_worker_is_drained_from_the_fleet(service: Service, visitor: Visitor) -> None:
    job = service.create_job(chat_rows(), suffix="drained", hyperparameters={"n_epochs": 40})
    service.wait(job.id, "running")
    page = visitor.open("/fleet")
    expect(page.get_by_role("link", name="drained")).to_be_visible()
    worker = service.processes.pop("worker")
    page.get_by_role("link", name="Drain CPU").click()
    expect(page.locator("main")).to_contain_text("tunewright worker --device cpu")
    page.get_by_role("button", name="Drain the worker").click()
    assert worker.wait() == 3, "asked to leave, not crashed"
    service.wait(job.id, "queued")
    page = visitor.open("/fleet")
    expect(page.get_by_role("heading", name="No worker has reported")).to_be_visible()
    service.start_worker()
    service.wait(job.id, "succeeded")
