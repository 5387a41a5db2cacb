"""What operators rely on: health, metrics, request ids, careful headers, and a process without torch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application


def samples(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = httpx.get(f"{service.base_url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def test_healthy_service_says_so(service: Service) -> None:
    assert httpx.get(f"{service.base_url}/healthz").json() == {"status": "ok"}
    ready = httpx.get(f"{service.base_url}/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["broker"]) == (200, "ready", "ok")


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
    device = labelled(worker="worker_test", device_class="cpu")
    assert after["tunewright_device_memory_used_bytes", device] == 2 * 1024**3
    assert after["tunewright_training_tokens_per_second", device] == 123.0
    assert not any("file-" in str(labels) or "ftjob-" in str(labels) for _, labels in after)


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
    logged = capsys.readouterr().out
    assert "/sign-in" in logged
    assert "a-secret-token" not in logged
