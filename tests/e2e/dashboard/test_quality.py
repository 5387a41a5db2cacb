"""What holds on every screen: accessible, light, readable without scripts, usable from the keyboard, within budget.

Screenshots of every screen, light and dark, desktop and phone, are left in test-results/dashboard.
"""

import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai.types.fine_tuning import FineTuningJob
from playwright.sync_api import Browser, Page, expect

from api.formatting import VERDICTS
from core.events.series import MOST_POINTS
from core.jobs.models import Job
from core.jobs.verdict import VerdictKind
from tests.architecture.sources import ROOT
from tests.e2e.dashboard.visitor import DESKTOP, PHONE, Visitor, owner_of
from tests.e2e.long_run import add_steps
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = ROOT / "test-results" / "dashboard"
FIRST_LOAD_BYTES = 120 * 1024  # compressed, as the first page needs them
OUR_LINES = 600  # of JavaScript
LARGEST_HEAP_BYTES = 100 * 1024**2
SHORT = 100  # steps of a tiny job, at most
SPIKE = 42.0
TABS = 200  # more than any page has stops

Screens = dict[str, str]


@pytest.fixture(scope="module")
def screens(service: Service, finished: FineTuningJob) -> Screens:
    """Every screen and state, by name."""
    file, shared = service.upload(chat_rows()), service.upload(chat_rows(4))
    unmapped = service.upload([{"frage": "Wo?", "antwort": "Da.", "notiz": "x"}] * 8)
    broken = service.upload([*chat_rows(3), {"messages": []}])
    waiting = service.create_job(chat_rows(), suffix="other", hyperparameters={"n_epochs": 1})
    service.wait(waiting.id, "succeeded")
    with service.http as http:
        owner = http.get("/account").json()["user"]["id"]
    return {
        "start": "/",
        "new": "/new",
        "new-data": f"/new?file={file}",
        "new-plan": f"/new?model=tiny&file={file}&n_epochs=2",
        "new-held-out": f"/new?model=tiny&file={file}&validation_file={shared}&max_credits=0",
        "new-unmapped": f"/new?model=tiny&file={unmapped}",
        "new-broken": f"/new?model=tiny&file={broken}",
        "new-nothing-fits": f"/new?model=huge&file={file}",
        "jobs": "/jobs",
        "jobs-none": "/jobs?q=nothing-is-called-this",
        "job": f"/jobs/{finished.id}",
        "compare": f"/compare?job={finished.id}&job={waiting.id}",
        "jobs-sorted": "/jobs?sort=loss&order=desc",
        "compare-with": f"/compare?job={finished.id}",
        "job-delete": f"/jobs/{finished.id}/delete",
        "models": "/models",
        "model-delete": f"/models/delete?model={finished.fine_tuned_model}",
        "credits": "/credits",
        "fleet": "/fleet",
        "fits": "/fits",
        "guide": "/guide",
        "guide-verdict": "/guide/what-the-loss-says",
        "settings": "/settings",
        "accounts": "/accounts",
        "account-limits": f"/accounts/{owner}/limits",
        "audit": "/audit",
        "usage": "/usage",
        "not-found": "/jobs/ftjob-none",
        "sign-in": "/sign-in",
    }


@pytest.fixture(scope="module", params=["light", "dark"])
def watched(request: pytest.FixtureRequest, service: Service, chromium: Browser) -> Iterator[tuple[str, Visitor]]:
    """The owner in each theme."""
    with Visitor.signed_in(service, chromium, owner_of(service), color_scheme=request.param) as visitor:
        yield request.param, visitor
        visitor.check()


def test_every_screen_is_accessible_and_fits_every_width(watched: tuple[str, Visitor], screens: Screens) -> None:
    theme, visitor = watched
    SHOTS.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    for name, path in screens.items():
        page = visitor.open(path)
        page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
        problems += [f"{name}, {theme}: {found}" for found in violations(page)]
        for device, viewport in (("phone", PHONE), ("desktop", DESKTOP)):
            page.set_viewport_size(viewport)
            too_wide = overhang(page)
            if too_wide > 0:
                problems.append(f"{name}, {device}: {too_wide} px too wide")
            problems += [f"{name}, {device}: {table} scrolls sideways" for table in scrolling(page)]
            page.screenshot(path=SHOTS / f"{name}-{theme}-{device}.png", full_page=True)
    assert problems == []


def overhang(page: Page) -> int:
    """Pixels by which the page is wider than the window, once charts have followed the window's new size."""
    drawn = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
    page.evaluate(drawn)
    pixels: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return pixels


def scrolling(page: Page) -> list[str]:
    """The tables that hold more than is seen of them at once, by their headings. A heat map is as wide as it is."""
    found: list[str] = page.evaluate(
        """[...document.querySelectorAll("table:not(.heat)")]
            .filter(table => table.parentElement.scrollWidth > table.parentElement.clientWidth)
            .map(table => (table.tHead ?? table).innerText.replace(/\\s+/g, " "))"""
    )
    return found


def violations(page: Page) -> list[str]:
    """What axe-core finds, of any severity."""
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']} ({one['impact']}): {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]
    ]


def test_a_running_job_is_accessible(service: Service, visitor: Visitor) -> None:
    job = service.create_job(chat_rows(), suffix="running", hyperparameters={"n_epochs": 100})
    service.wait(job.id, "running")
    page = visitor.open(f"/jobs/{job.id}")
    expect(page.locator("#job-live .badge")).to_have_text("Running")
    found = violations(page)
    page.screenshot(path=SHOTS / "job-running-light-desktop.png", full_page=True)
    service.client.fine_tuning.jobs.cancel(job.id)
    assert found == []


def test_every_verdict_is_shown_and_leads_to_what_to_try(
    service: Service, visitor: Visitor, finished: FineTuningJob
) -> None:
    true = say(service, finished, None)
    for kind in VerdictKind:
        step = None if kind is VerdictKind.NOT_MEASURED else 7
        say(service, finished, {"kind": kind, "step": step, "message": "What the losses say."})
        page = visitor.open(f"/jobs/{finished.id}")
        expect(page.locator("#job-live .notice").filter(has_text=VERDICTS[kind][0])).to_contain_text("the losses say")
        page.screenshot(path=SHOTS / f"job-{kind}-light-desktop.png", full_page=True)
        page.get_by_role("link", name="What to try next").click()
        page.wait_for_url("**/guide/what-to-try-next#*")
        expect(page.locator(f"#{page.url.partition('#')[2]}")).to_be_in_viewport()
        row = visitor.open("/jobs").get_by_role("row").filter(has=page.locator(f"[href='/jobs/{finished.id}']"))
        expect(row).to_contain_text(VERDICTS[kind][0])
        page.screenshot(path=SHOTS / f"jobs-{kind}-light-desktop.png")
    say(service, finished, true)


def say(service: Service, finished: FineTuningJob, verdict: dict[str, Any] | None) -> dict[str, Any] | None:
    """Give a job another verdict; returns the one it had."""
    with service.database.transaction() as session:
        job = session.get_one(Job, finished.id)
        before, job.verdict = job.verdict, verdict
    return before


def test_the_button_that_copies_covers_nothing(visitor: Visitor, finished: FineTuningJob) -> None:
    page = visitor.open(f"/jobs/{finished.id}")
    page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
    overlapping = page.evaluate(
        """[...document.querySelectorAll(".snippet")].filter(one => {
            const text = one.querySelector("pre").getBoundingClientRect();
            const button = one.querySelector("button").getBoundingClientRect();
            const isBeside = button.left >= text.right || button.top >= text.bottom || button.bottom <= text.top;
            return button.width === 0 || !isBeside;
        }).length"""
    )
    assert page.locator(".snippet").count() > 0
    assert overlapping == 0
    page.locator(".snippet").first.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "snippets-light-desktop.png")
    page.set_viewport_size(PHONE)
    page.screenshot(path=SHOTS / "snippets-light-phone.png")


def test_a_forms_own_address_is_a_page_that_leads_on(visitor: Visitor) -> None:
    page = visitor.open("/settings/keys")
    expect(page.get_by_role("navigation").get_by_role("link", name="Settings")).to_be_visible()
    expect(page.locator("main")).to_contain_text("it only takes what a form sends")
    expect(page.get_by_role("link", name="Back to the page")).to_have_attribute("href", "/settings")
    page.screenshot(path=SHOTS / "forms-address-light-desktop.png")
    page = visitor.open("/settings?changed=" + "x" * 30)  # an address that says what cannot be
    expect(page.locator("h1")).to_be_visible()


def test_without_scripts_everything_can_be_read_and_forms_work(
    service: Service, chromium: Browser, screens: Screens, finished: FineTuningJob
) -> None:
    with Visitor.signed_in(service, chromium, owner_of(service), java_script_enabled=False) as visitor:
        for name, path in screens.items():
            page = visitor.open(path)
            expect(page.locator("h1")).to_be_visible()
            assert page.locator("main").inner_text().strip(), name
        page = visitor.open(f"/jobs/{finished.id}")
        expect(page.locator("polyline.line-train")).to_be_visible()
        page = visitor.open(f"/new?model=tiny&file={service.upload(chat_rows())}")
        page.get_by_text("Adjust", exact=True).click()
        page.get_by_label("Epochs").fill("2")
        page.get_by_role("button", name="Plan again").click()
        expect(page.locator("#plan")).to_contain_text("in 2 epochs")
        page.locator("#start-button").click()
        expect(page.locator("#job-live")).to_be_visible()


@pytest.mark.usefixtures("finished")  # which was paid for: there are credits
def test_the_keyboard_alone_gets_from_a_file_to_an_adapter(service: Service, visitor: Visitor) -> None:
    file = service.upload(chat_rows())
    page = visitor.open(f"/new?file={file}")
    tab_to(page, lambda: (focused(page, "href") or "").endswith("model=tiny"))
    page.keyboard.press("Enter")
    page.wait_for_url("**model=tiny**")
    tab_to(page, lambda: page.evaluate("document.activeElement.innerText") == "Adjust")
    page.keyboard.press("Enter")
    tab_to(page, lambda: focused(page, "name") == "n_epochs")
    page.keyboard.type("2")
    expect(page.locator("#plan")).to_contain_text("in 2 epochs")
    tab_to(page, lambda: focused(page, "name") == "suffix")
    page.keyboard.type("typed")
    tab_to(page, lambda: focused(page, "id") == "start-button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/ftjob-*")
    expect(page.get_by_role("heading", level=1)).to_have_text("typed")
    expect(page.locator("#job-live .badge")).to_have_text("Succeeded")
    tab_to(page, lambda: (focused(page, "href") or "").endswith("/files/adapter.zip"))
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert zipfile.is_zipfile(download.value.path())


def tab_to(page: Page, arrived: Callable[[], bool]) -> None:
    """Press Tab until there."""
    for _ in range(TABS):
        page.keyboard.press("Tab")
        if arrived():
            return
    raise AssertionError("the keyboard does not get there")


def focused(page: Page, attribute: str) -> str | None:
    """An attribute of what has the focus."""
    value: str | None = page.evaluate("name => document.activeElement.getAttribute(name)", attribute)
    return value


def test_the_theme_is_switched_and_kept(visitor: Visitor) -> None:
    page = visitor.open("/")
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_the_first_load_is_small(service: Service, chromium: Browser) -> None:
    with Visitor.signed_in(service, chromium, owner_of(service)) as visitor:
        newest = visitor.context.new_page()
        visitor.watch(newest)
        network = visitor.context.new_cdp_session(newest)
        network.send("Network.enable")
        network.send("Network.setCacheDisabled", {"cacheDisabled": True})
        arrived: list[float] = []
        network.on("Network.loadingFinished", lambda event: arrived.append(event["encodedDataLength"]))
        visitor.requested.clear()
        newest.goto(f"{service.base_url}/new")
        newest.wait_for_load_state("networkidle")
        assert len(arrived) >= len(set(visitor.requested)) > 2, "page, script and styles at least"
        assert 0 < sum(arrived) <= FIRST_LOAD_BYTES
        for url in set(visitor.requested):
            answer = newest.request.get(url)
            if "/static/" in url:
                assert answer.headers["content-encoding"] == "gzip"
                assert "immutable" in answer.headers["cache-control"]


def test_a_job_of_ten_thousand_steps_stays_light(service: Service, visitor: Visitor) -> None:
    job = service.wait(service.create_job(chat_rows(), suffix="ten-thousand").id, "succeeded")
    add_steps(service, job.id, 10_000, peaks={7777: SPIKE})
    page = visitor.open(f"/jobs/{job.id}")
    drawn = page.locator("run-chart").first.evaluate("chart => chart.points.rows.map(row => row[1])")
    assert len(drawn) <= MOST_POINTS + SHORT
    assert SPIKE in drawn
    heap = visitor.context.new_cdp_session(page).send("Runtime.getHeapUsage")
    assert heap["usedSize"] < LARGEST_HEAP_BYTES


def test_our_scripts_stay_short() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in (ROOT / "api" / "assets").glob("*.js"))
    assert lines <= OUR_LINES
