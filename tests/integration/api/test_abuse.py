"""What is sent to break things: refused or bounded, never a 5xx, and nothing leaves its place."""

import gzip
import io
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api import request_heads
from core.settings import Settings
from tests.integration.api.server import Service, Tenant, running_application
from tests.waiting import wait_for

MIB = 1024**2
PATIENCE_SECONDS = 1.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str) -> Iterator[Service]:
    """A service with little patience."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("abused"),
        models_dir=models_dir,
        redis_url=valkey_url,
        max_upload_bytes=64 * MIB,
        body_patience_seconds=PATIENCE_SECONDS,
    )
    with running_application(settings) as service:
        yield service


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "..", "a\0b", "a/../../b.jsonl", "." * 300]
)
def test_a_file_name_is_only_a_name(service: Service, tenant: Tenant, filename: str) -> None:
    outside = set(service.settings.data_dir.parent.iterdir())
    answer = tenant.http.post("/v1/files", files={"file": (filename, b"text")}, data={"purpose": "fine-tune"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 200:
        shown = answer.json()["filename"]
        assert "/" not in shown
        assert "\\" not in shown
        content = tenant.http.get(f"/v1/files/{answer.json()['id']}/content")
        assert content.content == b"text"
    assert set(service.settings.data_dir.parent.iterdir()) == outside
    assert all(path.is_relative_to(service.settings.data_dir) for path in service.artifacts)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/files/%2e%2e/%2e%2e/content",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/fine_tuning/jobs/x/artifacts/..%2f..%2ftunewright.db",
        "/docs/assets/..%2f..%2fapp.py",
        "/docs/swagger/%2e%2e/%2e%2e/x.py",
    ],
)
def test_a_path_stays_inside(tenant: Tenant, path: str) -> None:
    answer = tenant.http.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize("name", ["x\r\nset-cookie: a=b", "x\"; filename*=UTF-8''y.html", "x\ny: z"])
def test_a_name_puts_no_header_into_a_download(tenant: Tenant, name: str) -> None:
    made = tenant.http.post("/v1/files", files={"file": (name, b"text")}, data={"purpose": "fine-tune"}).json()
    answer = tenant.http.get(f"/v1/files/{made['id']}/content")
    assert "set-cookie" not in answer.headers
    assert "y" not in answer.headers
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''")
    assert not set(disposition.removeprefix("attachment; filename*=UTF-8''")) & set("\r\n\"; '")


def test_a_header_that_comes_in_does_not_go_out(service: Service, tenant: Tenant) -> None:
    answer = tenant.http.get("/v1/account", headers={"x-request-id": "evil", "x-forwarded-host": "evil.example"})
    assert answer.headers["x-request-id"].startswith("req_")
    assert "evil" not in str(answer.headers)
    with socket.create_connection(urlsplit(service.base_url).netloc.split(":")) as raw:
        raw.sendall(b"GET /v1/account HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer tw-\r\n x\r\nx: \0\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"401")


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_json_is_refused(tenant: Tenant, depth: int, opening: bytes, closing: bytes) -> None:
    body = (
        b'{"model": "tiny", "training_file": "file-x", "metadata": ' + opening * depth + b"1" + closing * depth + b"}"
    )
    for path in ("/v1/plans", "/v1/api_keys", "/v1/credits/redemptions"):
        answer = tenant.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert len(answer.text) < 2000


def test_huge_json_is_refused_before_it_is_read(service: Service, tenant: Tenant) -> None:
    limit = service.settings.max_request_bytes
    for content in (b'{"name": "' + b"x" * limit + b'"}', (b"x" * 65536 for _ in range(64))):
        answer = tenant.http.post("/v1/api_keys", content=content, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    numbers = b'{"name": ' + b"9" * 100_000 + b"}"
    answer = tenant.http.post("/v1/api_keys", content=numbers, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert len(answer.text) < 2000


@pytest.mark.parametrize("size", [20_000, 60_000])
@pytest.mark.parametrize("place", ["path", "query", "headers"])
def test_a_long_head_is_refused_at_once(service: Service, tenant: Tenant, place: str, size: int) -> None:
    text = "a" * size
    asked = {
        "path": lambda: tenant.http.get(f"/v1/files/{text}"),
        "query": lambda: tenant.http.get("/v1/files", params={"after": text}),
        "headers": lambda: tenant.http.get("/v1/files", headers={f"x-{n}": text for n in range(3)}),
    }[place]
    before = time.process_time()
    answer = asked()
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "request_head_too_large")
    assert answer.headers["x-request-id"]
    assert time.process_time() - before < 1.0  # of this process, which runs the service: 16 s once
    assert tenant.http.get("/v1/account").status_code == 200


def test_a_head_without_an_end_is_let_go(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(service.base_url)
    with socket.create_connection((address.hostname, address.port)) as endless:
        endless.settimeout(20)
        endless.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * 300_000)
        assert endless.recv(100).split()[1] == b"400"
    monkeypatch.setattr(request_heads, "HEAD_SECONDS", 0.3)
    with socket.create_connection((address.hostname, address.port)) as silent:
        silent.settimeout(20)
        silent.sendall(b"GET / HTTP/1.1\r\n")
        assert silent.recv(100).split()[1] == b"400"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8040", "10.0.0.1"])
def test_another_name_for_this_machine_is_refused(service: Service, tenant: Tenant, host: str) -> None:
    answer = tenant.http.get("/v1/account", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "unknown_host")
    port = urlsplit(service.base_url).port
    for name in (f"localhost:{port}", "LOCALHOST", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert tenant.http.get("/v1/account", headers={"host": name}).status_code == 200


def _gzip_bomb() -> bytes:
    row = json.dumps({"prompt": "a" * MIB, "completion": "b"}).encode() + b"\n"
    return gzip.compress(row * 200, 9)


def _parquet_bomb() -> bytes:
    """Few bytes that are two columns of 400 MiB each: one long value, again and again."""
    value = pa.array(["x" * MIB])
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), value)
    file = io.BytesIO()
    pq.write_table(pa.table({"prompt": column, "completion": column}), file, compression="zstd")
    return file.getvalue()


def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", b"0" * 100 * MIB)
    return file.getvalue()


@pytest.mark.parametrize("bomb", [_gzip_bomb, _parquet_bomb, _zip_bomb])
def test_bombs_are_bounded_in_memory(service: Service, tenant: Tenant, bomb) -> None:
    content = bomb()
    assert len(content) < 2 * MIB
    made = tenant.http.post("/v1/files", files={"file": ("rows", content)}, data={"purpose": "fine-tune"}).json()
    with PeakMemory() as memory:
        answer = tenant.http.get(f"/v1/files/{made['id']}/inspection", timeout=60)
    assert answer.status_code in (200, 400), answer.text
    assert tenant.http.get(f"/v1/files/{made['id']}").json()["status"] in ("processed", "error")
    assert memory.grown_bytes < 300 * MIB


class PeakMemory:
    """How far this process, which runs the service, grows meanwhile."""

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self._before = self._peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """Above what it was at the start."""
        return self._peak - self._before


def test_an_upload_that_stops_is_let_go(service: Service, tenant: Tenant) -> None:
    parts = urlsplit(service.base_url)
    before = len(service.artifacts)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {tenant.key}\r\n"
        "content-length: 1000000\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nslow'
    )
    with socket.create_connection((parts.hostname, parts.port)) as slow:
        slow.sendall(head.encode())
        slow.settimeout(20)
        answer = slow.recv(4096)
    assert answer.split()[1] == b"408"
    wait_for(lambda: len(service.artifacts) == before, what="the half file to go")
    assert tenant.upload(b"text").startswith("file-")


def test_many_slow_clients_leave_room_for_others(service: Service, tenant: Tenant) -> None:
    parts = urlsplit(service.base_url)
    head = (
        f"POST /v1/plans HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {tenant.key}\r\ncontent-length: 1000\r\n"
        "content-type: application/json\r\n\r\n{"
    )
    slow = [socket.create_connection((parts.hostname, parts.port)) for _ in range(100)]
    for one in slow:
        one.sendall(head.encode())
    assert tenant.http.get("/v1/account").status_code == 200
    slow[0].settimeout(20)
    assert slow[0].recv(4096).split()[1] == b"408"
    for one in slow:
        one.close()


@pytest.mark.parametrize("path", ["/", "/docs", "/sign-in", "/sign-up", "/v1/files", "/nowhere", "/healthz"])
def test_every_answer_has_the_headers_of_a_careful_service(service: Service, path: str) -> None:
    headers = httpx.get(f"{service.base_url}{path}").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["permissions-policy"]
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert "strict-transport-security" not in headers  # it came without TLS
