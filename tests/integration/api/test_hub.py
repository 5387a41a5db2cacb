"""Models of a hub. A small server stands where it would, in front of a process that may reach it."""

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
from tests.tiny_models import tensors_header
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
COMMIT = "1" * 40
WEIGHT_BYTES = 1 << 20  # of a repository's file of weights
REPOSITORIES: dict[str, dict[str, bytes]] = {}  # files by repository
SERVED: list[tuple[str, str, int]] = []  # file, range asked for, bytes of the answer


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if "/resolve/" in path:
            self._send_file(*path.lstrip("/").split(f"/resolve/{COMMIT}/"))
            return
        status, headers, body = ANSWERS.get(path) or self._listing(path) or (404, {}, {"error": "Not found"})
        self._send(status, {**headers, "content-type": "application/json"}, json.dumps(body).encode())

    do_HEAD = do_GET

    def _listing(self, path: str) -> tuple[int, dict[str, str], Any] | None:
        repository, _, rest = path.removeprefix("/api/models/").partition("/tree/")
        files = REPOSITORIES.get(repository)
        if files is None:
            return None
        if rest:
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
            return 200, {}, tree
        siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
        return 200, {}, {"id": repository, "sha": COMMIT, "siblings": siblings}

    def _send_file(self, repository: str, name: str) -> None:
        content = REPOSITORIES[repository].get(name)
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        asked = self.headers.get("range", "")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last or len(content)) + 1]
        if self.command == "GET":
            SERVED.append((f"{repository}/{name}", asked, len(content)))
        self._send(206 if asked else 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

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
        ("acme/gated", 400, "model_gated", "accept its terms"),
        ("acme/missing", 404, "model_not_found", "nor found on the hub"),
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


def _publish(models_dir: Path, repository: str, weights: str, **changes: Any) -> None:
    """Put the tiny model on the hub, its weights as a header that says `weights` is their type."""
    tiny = models_dir / "tiny"
    content = {name: (tiny / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    config = json.loads((tiny / "config.json").read_text())
    header = tensors_header(config, weights)
    REPOSITORIES[repository] = content | {
        "config.json": json.dumps(config | changes).encode(),
        "model.safetensors": header + bytes(WEIGHT_BYTES),
    }


def _plan(url: str, tenant: Tenant, model: str, rows: list[dict[str, Any]]) -> httpx.Response:
    body = {"model": model, "training_file": tenant.upload(rows)}
    return httpx.post(f"{url}/v1/plans", json=body, headers=tenant.http.headers, timeout=30)


def test_a_hub_model_is_planned_from_its_configuration_and_headers_alone(
    connected: str, models_dir: Path, tenant: Tenant, rows: list[dict[str, Any]]
) -> None:
    _publish(models_dir, "acme/fine", "BF16")
    answer = _plan(connected, tenant, "acme/fine", rows)
    assert answer.status_code == 200, answer.text
    weights = [(asked, size) for name, asked, size in SERVED if name == "acme/fine/model.safetensors"]
    assert weights, "the header was never looked at"
    assert all(asked for asked, _ in weights)
    assert sum(size for _, size in weights) < WEIGHT_BYTES / 2


@pytest.mark.parametrize(
    ("model", "weights", "changes", "code"),
    [
        ("acme/fp8", "F8_E4M3", {}, "quantized_weights"),
        ("acme/nf4", "BF16", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized_weights"),
        ("acme/headless", "BF16", {"tie_word_embeddings": False}, "weights_mismatch"),
    ],
)
def test_a_hub_model_that_cannot_be_trained_is_refused_before_it_is_fetched(
    connected: str,
    models_dir: Path,
    tenant: Tenant,
    rows: list[dict[str, Any]],
    model: str,
    weights: str,
    changes: dict[str, Any],
    code: str,
) -> None:
    _publish(models_dir, model, weights, **changes)
    answer = _plan(connected, tenant, model, rows)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert all(asked for name, asked, _ in SERVED if name == f"{model}/model.safetensors")
