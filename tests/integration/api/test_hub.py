"""Models of a hub that says no. A small server stands where the hub would, in front of a process that may reach it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.api.server import Service, Tenant
from tests.ports import free_port
from tests.waiting import wait_for

ANSWERS: dict[str, tuple[int, dict[str, str], dict[str, Any]]] = {
    "/api/models/acme/gated": (403, {"X-Error-Code": "GatedRepo"}, {"error": "Access to acme/gated is restricted"}),
    "/api/models/acme/missing": (401, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}),
    "/api/models/acme/pickled": (
        200,
        {},
        {"id": "acme/pickled", "sha": "0" * 40, "siblings": [{"rfilename": "pytorch_model.bin"}]},
    ),
    "/api/models/acme/broken": (500, {}, {"error": "Internal error"}),
}


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = ANSWERS.get(self.path.split("?")[0], (404, {}, {"error": "Not found"}))
        self.send_response(status)
        for name, value in {**headers, "content-type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_arguments: Any) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def hub_url() -> Iterator[str]:
    """The address of a hub."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def connected(service: Service, hub_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second API process on the same database and store, whose hub is `hub_url`; its address."""
    port = free_port()
    settings = service.settings
    environment = {
        **os.environ,
        "TUNEWRIGHT_DATA_DIR": str(settings.data_dir),
        "TUNEWRIGHT_MODELS_DIR": str(settings.models_dir),
        "TUNEWRIGHT_REDIS_URL": settings.resolved_redis_url,
        "TUNEWRIGHT_HEARTBEAT_SECONDS": "300",
        "TUNEWRIGHT_LEASE_SECONDS": "900",
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }
    log_path: Path = tmp_path_factory.mktemp("connected") / "api.log"
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(url), what="the second API", context=log_path.read_text)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("model", "status", "code", "says"),
    [
        ("acme/gated", 400, "model_gated", "Accept its licence"),
        ("acme/missing", 404, "model_not_found", "nor on the hub"),
        ("acme/pickled", 400, "unsafe_weights", "no safetensors"),
        ("acme/broken", 503, "hub_unreachable", "did not answer"),
    ],
)
def test_hub_that_says_no_is_explained(
    connected: str, rich: Tenant, rows: list[dict[str, Any]], model: str, status: int, code: str, says: str
) -> None:
    body = {"model": model, "training_file": rich.upload(rows)}

    answer = httpx.post(f"{connected}/v1/fine_tuning/jobs", json=body, headers=rich.http.headers, timeout=30)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, "model")
    assert says in error["message"]
    assert [transaction.kind for transaction in rich.transactions] == ["grant"]
    assert list(rich.client.fine_tuning.jobs.list()) == []
