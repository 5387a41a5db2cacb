"""`make image-check`: the image is built and run as docker-compose.yml says, and a job trains in it to its adapter.

    .venv/bin/python -m tests.image.check [--work DIRECTORY] [--build-flags "..."]

With Docker it is `docker compose`; without, buildah builds and bubblewrap runs, as root (see build.py and stack.py).
"""

import argparse
import io
import json
import os
import signal
import tempfile
import zipfile
from pathlib import Path

import httpx
import openai

from tests.e2e.rows import chat_rows
from tests.image.build import build, has_docker
from tests.image.stack import LASTING, DockerStack, SandboxStack, Stack
from tests.tiny_models import make_tiny_model
from tests.waiting import wait_for

MODEL, CODE = "tiny-chat", "CHECK"
_CONFINEMENT = """
import json, os, pathlib
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
def writes(path):
    try:
        pathlib.Path(path, "probe").write_text("x")
        pathlib.Path(path, "probe").unlink()
        return True
    except OSError:
        return False
print(json.dumps({"user": os.getuid(), "group": os.getgid(), "capabilities": status["CapEff"] + status["CapBnd"],
                  "no_new_privileges": status["NoNewPrivs"], "writes": [p for p in
                  ("/", "/etc", "/opt/tunewright", "/usr", "/var/tmp", "/data", "/tmp") if writes(p)]}))
"""


def main() -> None:
    """Build, start, check, train, stop. Raises AssertionError with the logs where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where storage and volumes are kept; else a temporary folder")
    parser.add_argument("--build-flags", default="", help="more flags of `buildah bud`, such as --volume and --env")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunewright-image-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        os.chmod(work, 0o755)  # the image's user goes through it
        stack = DockerStack() if has_docker() else SandboxStack(build(work, options.build_flags), work)
        try:
            check(stack, Path(temporary))
        finally:
            stack.close()


def check(stack: Stack, scratch: Path) -> None:
    """What the README promises of the image."""
    for service in LASTING:
        check_confinement(stack, service)
    stack.put(make_tiny_model(scratch / MODEL), MODEL)
    train(stack)
    codes = stack.stop()
    # uvicorn finishes its requests and then ends by the signal that it was sent.
    assert set(codes.values()) <= {0, 128 + signal.SIGTERM}, f"{codes}\n{stack.logs()}"
    print(f"stopped in order: {codes}")


def check_confinement(stack: Stack, service: str) -> None:
    """No privileges, and nothing to write but the volumes."""
    found = json.loads(stack.run(service, "python", "-c", _CONFINEMENT))
    assert (found["user"], found["group"]) == (10001, 10001), found
    assert set(found["capabilities"]) == {"0"}, found
    assert found["no_new_privileges"] == "1", found
    assert found["writes"] == ["/data", "/tmp"], found
    print(f"{service}: uid 10001, no capabilities, writes only to {' and '.join(found['writes'])}")


def train(stack: Stack) -> None:
    """A job from its upload to its adapter, with the official client."""
    key = stack.run("api", "tunewright", "keys", "create", "--name", "check").strip()
    stack.run("api", "tunewright", "codes", "create", CODE, "--credits", "100000")
    headers = {"authorization": f"Bearer {key}"}

    def workers() -> list[object]:
        found: list[object] = (
            httpx.get(f"{stack.base_url}/v1/workers", headers=headers).raise_for_status().json()["data"]
        )
        return found

    wait_for(workers, what="a worker to report its device", context=stack.logs)  # which it does when torch is imported
    client = openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=key)
    rows = "\n".join(json.dumps(row) for row in chat_rows()).encode()
    file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 2}, extra_body={"credit_code": CODE}
    )

    def ended() -> bool:
        status = client.fine_tuning.jobs.retrieve(job.id).status
        assert status not in ("failed", "cancelled"), stack.logs()
        return status == "succeeded"

    wait_for(ended, what=f"{job.id} to succeed", context=stack.logs)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert all(client.files.content(name).read() for name in done.result_files)
    url = f"{stack.base_url}/v1/fine_tuning/jobs/{job.id}/artifacts/adapter.zip"
    adapter = httpx.get(url, headers=headers, follow_redirects=True, timeout=60).raise_for_status().content
    names = zipfile.ZipFile(io.BytesIO(adapter)).namelist()
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {Path(name).name for name in names}, names
    print(f"{job.id}: {done.fine_tuned_model}, {done.trained_tokens} tokens, an adapter of {len(adapter)} bytes")


if __name__ == "__main__":
    main()
