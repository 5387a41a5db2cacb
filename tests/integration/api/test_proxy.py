"""The service behind the nginx of `ops/nginx.conf`, with TLS, as browsers and the official client reach it."""

import http.client
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.settings import Settings
from tests.architecture.sources import ROOT
from tests.integration.api.server import Service, running_application
from tests.ports import free_port
from tests.waiting import wait_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module")
def proxy_port() -> int:
    """Where the proxy listens for TLS."""
    return free_port()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, valkey_url: str, proxy_port: int
) -> Iterator[Service]:
    """A service that is told where browsers reach it."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("behind"),
        models_dir=models_dir,
        redis_url=valkey_url.replace("/0", "/7"),
        public_url=f"https://127.0.0.1:{proxy_port}",
        sign_up_open=True,
    )
    with running_application(settings) as service:
        yield service


@pytest.fixture(scope="module")
def proxy(service: Service, proxy_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shipped configuration with this machine's ports and a certificate of its own; the address behind TLS."""
    directory = tmp_path_factory.mktemp("nginx")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    shipped = (ROOT / "ops" / "nginx.conf").read_text()
    folder = "/etc/letsencrypt/live/tunewright.example.com"
    for there, here in {
        "listen 80;": f"listen 127.0.0.1:{free_port()};",
        "listen 443 ssl;": f"listen 127.0.0.1:{proxy_port} ssl;",
        f"{folder}/fullchain.pem": str(certificate),
        f"{folder}/privkey.pem": str(key),
        "http://127.0.0.1:8040": service.base_url,
    }.items():
        assert there in shipped
        shipped = shipped.replace(there, here)
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = directory / "nginx.conf"
    main.write_text(f"pid {directory}/pid; events {{}} http {{ access_log off; {paths}\n{shipped} }}")
    assert NGINX is not None
    command = [NGINX, "-c", str(main), "-e", str(directory / "error.log"), "-g", "daemon off;"]
    process = subprocess.Popen(command)
    try:
        address = f"https://127.0.0.1:{proxy_port}"
        wait_for(lambda: _answers(address), what="nginx", context=(directory / "error.log").read_text)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", verify=False).is_success
    except httpx.TransportError:
        return False


def test_a_person_signs_up_with_a_password(proxy: str) -> None:
    with httpx.Client(base_url=proxy, verify=False, headers={"origin": proxy}) as browser:
        page = browser.get("/sign-up")
        token = page.text.partition('name="csrf_token" value="')[2].partition('"')[0]
        form = {"csrf_token": token, "email": "ada@example.org", "password": "correct horse battery", "name": "Ada"}
        answer = browser.post("/sign-up", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
        assert "Secure" in answer.headers["set-cookie"]
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert browser.get("/v1/account").json()["user"]["name"] == "Ada"


def test_events_arrive_as_they_happen(proxy: str, service: Service, rows: list[dict[str, Any]]) -> None:
    with service.tenant() as tenant:
        tenant.grant(1000)
        job = tenant.client.fine_tuning.jobs.create(model="tiny", training_file=tenant.upload(rows))
        headers = {"authorization": f"Bearer {tenant.key}", "accept": "text/event-stream"}
        url = f"{proxy}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
        with httpx.stream("GET", url, headers=headers, verify=False) as events:
            first = next(line for line in events.iter_lines() if line.startswith("data:"))
    assert job.id in first or "message" in first  # while the stream is open: its job has not even been claimed


def test_a_body_above_the_limit_is_refused_before_it_is_sent(proxy: str, proxy_port: int) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", proxy_port, context=ssl._create_unverified_context())
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Length", str(600 * 2**20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_metrics_are_for_those_who_reach_the_service_itself(proxy: str, service: Service) -> None:
    assert httpx.get(f"{proxy}/metrics", verify=False).status_code == 404
    assert httpx.get(f"{service.base_url}/metrics").is_success
