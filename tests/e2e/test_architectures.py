"""Models that the planner has no formula of: planned from a dry run, then trained like any other."""

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from core.datasets.models import StoredFile
from tests.e2e.rows import chat_rows
from tests.e2e.service import CREDIT_CODE, Service
from tests.tiny_models import make_tiny_model
from tests.waiting import PATIENCE_SECONDS, wait_for


def plan(service: Service, model: str, training_file: str, method: str = "auto") -> httpx.Response:
    with service.http as http:
        body = {"model": model, "training_file": training_file, "adapter": {"method": method}}
        return http.post("/plans", json=body, timeout=30)


def planned(service: Service, model: str, training_file: str, method: str = "auto") -> dict[str, Any]:
    """The plan, or the error, that comes once the worker has dry-run."""

    def settled() -> dict[str, Any] | None:
        answer = plan(service, model, training_file, method)
        body: dict[str, Any] = answer.json()
        if answer.status_code == 409:
            assert body["error"]["code"] == "dry_run_pending"
            assert int(answer.headers["retry-after"]) > 0
            assert "x-should-retry" not in answer.headers
            return None
        return body

    return wait_for(settled, what=f"the dry run of {model}", context=service.logs)


# OPT has learned positions; StableLM's code drops the arguments by which rows are cut into examples.
@pytest.mark.parametrize(("family", "method"), [("gpt_neox", "lora"), ("opt", "qlora"), ("stablelm", "lora")])
def test_an_unknown_architecture_is_planned_from_a_dry_run_and_trains(
    service: Service, models_dir: Path, family: str, method: str
) -> None:
    make_tiny_model(models_dir / family, family=family)
    training_file = service.upload(chat_rows())
    assert plan(service, family, training_file, method).status_code == 409
    found = planned(service, family, training_file, method)
    assert any(f"no formula for {family}" in reason and "dry-run" in reason for reason in found["reasons"])
    assert found["adapter"]["method"] == method
    job = service.client.fine_tuning.jobs.create(
        model=family, training_file=training_file, extra_body={"plan": found["id"], "credit_code": CREDIT_CODE}
    )
    done = service.wait(job.id, "succeeded")
    assert done.trained_tokens
    with service.http as http:
        memory = http.get(f"/fine_tuning/jobs/{job.id}").json()["memory"]
    assert (
        memory["measured"]["device_bytes"] <= memory["predicted"]["device_bytes"] + memory["predicted"]["bound_bytes"]
    )
    assert plan(service, family, training_file, method).status_code == 200  # remembered


def kill_maintenance_at_work(service: Service) -> None:
    """While one of its children dry-runs, and another is to inspect, but is stopped, so that it is there still."""
    maintenance = psutil.Process(service.processes["maintenance"].pid)

    def child(program: str) -> psutil.Process | None:
        return next((one for one in maintenance.children() if program in one.cmdline()), None)

    dry_running = wait_for(lambda: child("worker.training.dry_run"), what="the dry run", context=service.logs)
    wait_until_inspected(service, service.upload(chat_rows()))
    reading = child("core.limited.child")
    assert reading is not None
    reading.suspend()
    file_id = service.upload(chat_rows())
    attempts = select(StoredFile.attempts).where(StoredFile.id == file_id)

    def is_inspected() -> bool:
        with service.database.read() as session:
            return session.scalar(attempts) == 1

    wait_for(is_inspected, what="the inspection to begin", context=service.logs)
    service.stop("maintenance", signal.SIGKILL)
    _, alive = psutil.wait_procs([dry_running, reading], timeout=PATIENCE_SECONDS)
    assert alive == []
    service.end_claims()
    service.start_maintenance()
    wait_until_inspected(service, file_id)


def wait_until_inspected(service: Service, file_id: str) -> None:
    """By a maintenance worker, as nobody asks for it."""
    wait_for(
        lambda: service.client.files.retrieve(file_id).status == "processed",
        what=f"{file_id} to be inspected",
        context=service.logs,
    )


def test_what_cannot_be_dry_run_is_refused_with_the_reason(service: Service, models_dir: Path) -> None:
    alien = make_tiny_model(models_dir / "alien")
    config = json.loads((alien / "config.json").read_text()) | {"model_type": "no_such_family"}
    (alien / "config.json").write_text(json.dumps(config))
    training_file = service.upload(chat_rows())
    assert plan(service, "alien", training_file).status_code == 409
    kill_maintenance_at_work(service)
    error = planned(service, "alien", training_file)["error"]
    assert error["code"] == "unsupported_architecture"
    assert "no_such_family" in error["message"]
