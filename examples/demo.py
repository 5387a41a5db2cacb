"""`make demo`: fine-tune a real model through the real service, the way any client would.

Everything goes through the public HTTP API: the official `openai` client for what OpenAI's API has, plain HTTP for
what it lacks (plans, credits, artifacts). Only the key, the credit code and the service itself come from the
command line. A second run shows the finished adapter again; `make demo AGAIN=1` trains another.
"""

import argparse
import io
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import httpx
from demo_service import (
    CREDIT_CODE,
    DemoFailedError,
    api_key,
    ensure_credit_code,
    read_record,
    service,
    tunewright,
    write_record,
)
from demo_view import compare_answers, follow_job, plan_view
from openai import OpenAI
from rich.console import Console
from rich.rule import Rule

from cli.plan_view import show_plan
from core.datasets.samples import UNSEEN_PROMPTS, sample_path
from planner.wording import duration, gib

MODEL = "smollm2-135m-instruct"
DATA_DIRECTORY = Path("var/demo")
# One pass in small batches: as many steps as two passes in the planner's own batches of 8, with half the tokens to
# wait for, and enough for the style to show.
HYPERPARAMETERS = {"n_epochs": 1, "batch_size": 4}
WORKER_SECONDS = 90

console = Console(highlight=False)


def main() -> None:
    """Run the demo, or show again what it made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--again", action="store_true", help="train again although an adapter is there")
    parser.add_argument("--data", type=Path, default=DATA_DIRECTORY, help="the service's directory")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: stop the service that was started
    data_dir: Path = arguments.data.absolute()
    try:
        record = None if arguments.again else read_record(data_dir)
        if record is None:
            record = train(data_dir)
            write_record(data_dir, record)
        else:
            console.print(f"The adapter of [bold]{record['job']}[/] is there; `make demo AGAIN=1` trains another.")
        show_result(record)
    except (DemoFailedError, httpx.HTTPError) as error:
        detail = error.response.text if isinstance(error, httpx.HTTPStatusError) else ""
        console.print(f"[bold red]The demo stopped:[/] {error} {detail}")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted. `make demo` goes on where it was.")
        sys.exit(130)
    say_where_everything_is(data_dir, record)


def train(data_dir: Path) -> dict[str, str]:
    """The whole way from nothing to an adapter on disk."""
    step(1, "The base model, converted once and kept")
    with console.status("Fetching SmolLM2-135M-Instruct; the first time takes half a minute"):
        base_model = tunewright(data_dir, "models", "fetch", MODEL, quiet=True)
    console.print(shown(base_model), soft_wrap=True)

    step(2, "The service: database, broker, workers and API, from this environment alone")
    with console.status("Starting"), service(data_dir) as url:
        console.print(f"{url} is ready")
        key = api_key(data_dir, url)
        ensure_credit_code(data_dir)
        client = OpenAI(base_url=f"{url}/v1", api_key=key)
        http = httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=60)
        with client, http:
            return fine_tune(data_dir, client, http) | {"base_model": base_model}


def fine_tune(data_dir: Path, client: OpenAI, http: httpx.Client) -> dict[str, str]:
    """What a user does: credits, data, plan, job, adapter."""
    step(3, f"Credits: redeeming {CREDIT_CODE}")
    console.print(redeem(http))
    job_id = unfinished_job(client) or create_job(client, http)
    follow_job(console, http, job_id)
    job = client.fine_tuning.jobs.retrieve(job_id)
    if job.status != "succeeded":
        reason = job.error.message if job.error and job.error.message else f"its status is {job.status}"
        raise DemoFailedError(f"The job did not succeed: {reason}")

    step(7, "The adapter")
    directory = data_dir / "adapters" / job.id
    size = download_adapter(http, job.id, directory)
    console.print(f"{job.fine_tuned_model}: {size / 1024**2:.1f} MiB in {shown(directory)}", soft_wrap=True)
    return {"job": job.id, "adapter": str(directory), "summary": summary(job.model_dump())}


def unfinished_job(client: OpenAI) -> str | None:
    """The job of a run that was interrupted: the service goes on with it from its last checkpoint."""
    for job in client.fine_tuning.jobs.list(limit=1).data:
        if job.status in ("validating_files", "queued", "running"):
            console.print(f"\n{job.id} was interrupted and goes on from its last checkpoint")
            return job.id
    return None


def create_job(client: OpenAI, http: httpx.Client) -> str:
    """Upload the data, have it planned, and start the job at exactly that plan."""
    step(4, "The data set: support conversations of a company that does not exist")
    with sample_path().open("rb") as data:
        file = client.files.create(file=data, purpose="fine-tune")
    console.print(f"{file.filename}: {file.bytes:,} bytes as {file.id}")

    step(5, "The plan, known to fit before anything is paid")
    with console.status("Waiting for the worker to report its device"):
        wait_for_worker(http)
    requested = {"model": MODEL, "training_file": file.id, "hyperparameters": HYPERPARAMETERS}
    plan = http.post("/plans", json=requested).raise_for_status().json()
    console.print(show_plan(plan_view(plan)))

    step(6, "The job, at exactly that plan and price")
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, suffix="lanternfish", extra_body={"plan": plan["id"]}
    )
    console.print(f"{job.id} is {job.status}")
    return job.id


def redeem(http: httpx.Client) -> str:
    """Redeem the code; a code that was redeemed before leaves the balance as it is."""
    answer = http.post("/credits/redemptions", json={"code": CREDIT_CODE})
    if answer.status_code == httpx.codes.CONFLICT:
        balance = http.get("/credits").raise_for_status().json()
        return f"Redeemed before; {balance['available']:,} credits are left"
    redemption = answer.raise_for_status().json()
    return f"{redemption['credits']:,} credits; the balance is {redemption['balance']['available']:,}"


def wait_for_worker(http: httpx.Client) -> None:
    """Until a worker has reported its device: it imports torch first. Raises DemoFailedError."""
    deadline = time.monotonic() + WORKER_SECONDS
    while time.monotonic() < deadline:
        if http.get("/workers").raise_for_status().json()["data"]:
            return
        time.sleep(0.2)
    raise DemoFailedError(f"No worker reported within {WORKER_SECONDS} s; see the logs of the service.")


def download_adapter(http: httpx.Client, job_id: str, directory: Path) -> int:
    """Unpack adapter.zip into the directory; returns the size of the archive in bytes."""
    answer = http.get(f"/fine_tuning/jobs/{job_id}/artifacts/adapter.zip", follow_redirects=True).raise_for_status()
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(directory)
    return len(answer.content)


def summary(job: dict[str, object]) -> str:
    """Quote against charge and prediction against measurement, from the job as the API shows it."""
    job = json.loads(json.dumps(job))
    memory, quote = job["memory"], job["quote"]
    measured = memory["measured"] or {}
    lines = [
        f"Quoted {quote['credits']:,} credits, charged {job['charged']:,}.",
        f"Predicted {gib(memory['predicted']['device_bytes'])} of memory with a bound of {gib(memory['bound'])}"
        + (f", measured {gib(measured['device_bytes'])}." if measured else "."),
        f"Trained on {job['trained_tokens']:,} tokens in {duration(job['finished_at'] - job['started_at'])}.",
    ]
    return "\n".join(lines)


def show_result(record: dict[str, str]) -> None:
    """The answers to four prompts that the model has never seen, before and after."""
    console.print(Rule("Before and after, on prompts that were not in the data", align="left"))
    console.print(compare_answers(console, Path(record["base_model"]), Path(record["adapter"]), UNSEEN_PROMPTS))
    console.print(record["summary"])


def say_where_everything_is(data_dir: Path, record: dict[str, str]) -> None:
    """What is where, and how to go on."""
    console.print(Rule(align="left"))
    for label, value in (
        ("Adapter", shown(record["adapter"])),
        ("Base model", shown(record["base_model"])),
        ("Data, logs, artifacts", shown(data_dir)),
        ("Open the service again", f"make serve DATA={shown(data_dir)}"),
        ("Train again", "make demo AGAIN=1"),
    ):
        console.print(f"[dim]{label:<23}[/]{value}", soft_wrap=True)


def shown(path: Path | str) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else str(path)


def step(number: int, title: str) -> None:
    """Say what comes now."""
    console.print(f"\n[bold cyan]{number}[/] [bold]{title}[/]")


if __name__ == "__main__":
    main()
