"""What operators rely on: health, metrics, request ids, careful headers, and a process without torch."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from core.fleet import programs
from core.fleet import service as fleet
from core.fleet.models import ProgramStatus
from core.fleet.programs import ProgramState
from core.settings import Settings
from tests.integration.api.server import CPU, Service, Tenant, report_device, running_application
from tests.waiting import PATIENCE_SECONDS, wait_for

UP = ProgramStatus.RUNNING
PARTS = ("database", "broker", "store")


def samples(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    exposition = httpx.get(f"{service.base_url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def test_healthy_service_says_so(service: Service) -> None:
    assert httpx.get(f"{service.base_url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{service.base_url}/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["broker"]) == (200, "ready", "ok")


def test_readiness_and_metrics_say_how_the_programs_fare_and_when_the_sweep_ran(service: Service) -> None:
    database = service.runtime.database
    states = [ProgramState("maintenance", ProgramStatus.RESTARTING, None, 7, "code 1"), ProgramState("api", UP, 12)]
    database.run(lambda session: programs.report_programs(session, "here", states))
    database.run(lambda session: programs.report_sweep(session, "here", 0.2))
    try:
        ready = httpx.get(f"{service.base_url}/readyz").json()
        metrics = samples(service)
    finally:
        database.run(lambda session: programs.report_programs(session, "here", []))
    assert ready["warnings"] == ["maintenance ended with code 1 and is started again (7 times so far)"]
    assert ready["swept_at"] == metrics["tunewright_sweep_finished_timestamp_seconds", frozenset()] // 1
    assert metrics["tunewright_program_up", labelled(host="here", program="maintenance")] == 0
    assert metrics["tunewright_program_up", labelled(host="here", program="api")] == 1
    assert metrics["tunewright_program_restarts", labelled(host="here", program="maintenance")] == 7


def test_a_database_without_this_releases_schema_is_not_ready(tmp_path: Path, valkey_url: str) -> None:
    settings = Settings(data_dir=tmp_path / "data", redis_url=valkey_url)
    with running_application(settings) as service:
        with service.runtime.database.transaction() as session:
            session.execute(text("update alembic_version set version_num = '0001'"))
        old = httpx.get(f"{service.base_url}/readyz")
        with service.runtime.database.transaction() as session:
            session.execute(text("update alembic_version set version_num = '9999'"))
        new = httpx.get(f"{service.base_url}/readyz")
    assert (old.status_code, new.status_code) == (503, 503)
    assert "run `tunewright migrate`" in old.json()["error"]["message"]
    assert "of a newer release" in new.json()["error"]["message"]


def test_readiness_names_what_is_broken(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", redis_url="redis://127.0.0.1:1/0", store_url="file:///proc/nowhere")
    with running_application(settings) as broken:
        answer = httpx.get(f"{broken.base_url}/readyz")
        metrics = samples(broken)

    message = answer.json()["error"]["message"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "the broker does not answer" in message
    assert "the store does not answer" in message
    assert "database" not in message
    assert answer.headers["retry-after"]
    assert ("tunewright_jobs", labelled(status="queued")) in metrics
    assert not any(name == "tunewright_queue_depth" for name, _ in metrics)
    up = {part: metrics["tunewright_dependency_up", labelled(dependency=part)] for part in PARTS}
    assert up == {"database": 1, "broker": 0, "store": 0}


def test_metrics_count_requests_jobs_queues_and_devices(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    created = ("tunewright_http_requests_total", labelled(method="POST", route="/v1/fine_tuning/jobs", status="200"))
    before = samples(service)
    rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows))
    after = samples(service)

    assert after[created] == before.get(created, 0) + 1
    queued = ("tunewright_jobs", labelled(status="queued"))
    assert after[queued] == before[queued] + 1
    queue = ("tunewright_queue_depth", labelled(queue="train.cpu"))
    assert after[queue] == before[queue] + 1
    device = labelled(host="test-host", device="cpu", device_class="cpu")
    assert after["tunewright_worker_up", device] == 1
    assert after["tunewright_device_memory_used_bytes", device] == 2 * 1024**3
    assert after["tunewright_training_tokens_per_second", device] == 123.0
    assert not any("file-" in str(labels) or "ftjob-" in str(labels) for _, labels in after)


def test_a_worker_that_is_gone_is_down_and_its_queue_stays(service: Service) -> None:
    card = replace(CPU, index=3, kind="cuda", name="Old card", uuid="GPU-old", device_class="nvidia-old-1gb")
    report_device(service, card, "worker-first")
    service.runtime.database.run(lambda session: fleet.stop(session, "worker-first"))
    down = samples(service)
    labels = labelled(host="test-host", device="cuda:3", device_class="nvidia-old-1gb")
    assert down["tunewright_worker_up", labels] == 0
    assert down["tunewright_queue_depth", labelled(queue="train.nvidia-old-1gb")] == 0

    report_device(service, card, "worker-second")  # its successor has the same labels
    try:
        assert samples(service)["tunewright_worker_up", labels] == 1
    finally:
        service.runtime.database.run(lambda session: fleet.stop(session, "worker-second"))


def test_metrics_tell_what_becomes_of_jobs_and_keep_it(
    service: Service, rich: Tenant, rows: list[dict[str, Any]]
) -> None:
    before = samples(service)
    first, second = (
        rich.client.fine_tuning.jobs.create(model="tiny", training_file=rich.upload(rows)).id for _ in range(2)
    )
    waiting = samples(service)
    here = labelled(device_class="cpu")
    assert waiting["tunewright_queued_jobs", here] == before.get(("tunewright_queued_jobs", here), 0) + 2
    assert waiting["tunewright_oldest_queued_job_seconds", here] > 0

    service.fail(service.claim(first), "broken")
    service.finish(service.claim(second))
    rich.http.delete(f"/v1/fine_tuning/jobs/{first}").raise_for_status()
    after = samples(service)

    def added(name: str, **labels: str) -> float:
        key = (name, labelled(**labels))
        return after[key] - before.get(key, 0)

    assert added("tunewright_jobs_ended_total", outcome="failed", code="training_failed") == 1
    assert added("tunewright_jobs_ended_total", outcome="succeeded", code="") == 1
    (method,) = {dict(labels)["method"] for name, labels in after if name == "tunewright_job_waiting_seconds_count"}
    assert added("tunewright_job_waiting_seconds_bucket", method=method, le="+Inf") >= 2
    assert added("tunewright_job_running_seconds_count", method=method, outcome="succeeded") == 1
    assert added("tunewright_job_running_seconds_bucket", method=method, outcome="failed", le="1") == 1


def test_metrics_say_how_fast_the_service_stands_and_how_much_room_there_is(service: Service) -> None:
    found = samples(service)
    for part in PARTS:
        assert found["tunewright_dependency_up", labelled(dependency=part)] == 1
        assert 0 < found["tunewright_dependency_seconds", labelled(dependency=part)] < PATIENCE_SECONDS
    data = labelled(directory="data", host=platform.node())
    assert 0 < found["tunewright_disk_free_bytes", data] < found["tunewright_disk_total_bytes", data]
    assert found["tunewright_leases_lost_total", frozenset()] >= 0


def test_every_response_has_an_id_and_careful_headers(service: Service, tenant: Tenant) -> None:
    answers = [
        tenant.http.get("/v1/files"),
        tenant.http.get("/v1/nowhere"),
        tenant.http.post("/v1/files", content=b""),
        httpx.get(f"{service.base_url}/docs"),
        httpx.get(f"{service.base_url}/v1/files"),
    ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_unexpected_error_hides_its_details(service: Service, tenant: Tenant) -> None:
    """A row that no code of ours writes makes the handler fail in a way nobody foresaw."""
    file_id = tenant.upload([{"text": "one"}, {"text": "two"}])
    with service.runtime.database.engine.begin() as connection:
        connection.exec_driver_sql("update files set status = 'no such status' where id = ?", (file_id,))

    answer = tenant.http.get(f"/v1/files/{file_id}")

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert answer.headers["x-request-id"] in error["message"]
    assert "no such status" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_api_process_never_loads_torch() -> None:
    script = (
        "import sys; from api.app import create_app; create_app(); "
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, env={**os.environ, "PYTHONWARNINGS": "error"}
    )


def test_request_log_hides_the_token_of_a_sign_in_link(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    httpx.get(f"{service.base_url}/sign-in", params={"token": "a-secret-token"})
    logged: list[str] = []

    def is_logged() -> bool:  # after the answer was sent
        logged.append(capsys.readouterr().out)
        return "/sign-in" in "".join(logged)

    wait_for(is_logged, what="the request's line")
    assert "a-secret-token" not in "".join(logged)
