"""Files over the wire: streamed in, hashed, listed, downloaded, deleted."""

import hashlib
import shutil
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from core.datasets.models import StoredFile
from tests.integration.api.server import Service, Tenant
from tests.waiting import wait_for

BOUNDARY = "frontier"


def form(parts: list[tuple[str, str | None, bytes]], *, end: bool = True) -> bytes:
    """A multipart body of (name, file name, value)."""
    body = b""
    for name, filename, value in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        body += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + value + b"\r\n"
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def post_form(tenant: Tenant, body: Any, content_type: str = f"multipart/form-data; boundary={BOUNDARY}") -> Any:
    """Upload by hand."""
    return tenant.http.post("/v1/files", content=body, headers={"content-type": content_type})


def test_file_is_kept_as_it_was_sent(tenant: Tenant) -> None:
    content = b'{"text": "one"}\n{"text": "two"}\n'

    file = tenant.client.files.create(file=("../My notes.jsonl", content), purpose="fine-tune")

    assert (file.object, file.purpose, file.bytes, file.filename) == (
        "file",
        "fine-tune",
        len(content),
        "My notes.jsonl",
    )
    assert tenant.client.files.retrieve(file.id).id == file.id
    assert tenant.client.files.content(file.id).read() == content
    raw = tenant.http.get(f"/v1/files/{file.id}/content")
    assert raw.headers["content-length"] == str(len(content))
    assert raw.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert raw.headers["content-disposition"].startswith("attachment")
    unchanged = tenant.http.get(f"/v1/files/{file.id}/content", headers={"if-none-match": raw.headers["etag"]})
    assert unchanged.status_code == 304


def test_deleted_file_leaves_nothing(service: Service, tenant: Tenant) -> None:
    before = set(service.artifacts)
    file_id = tenant.upload([{"text": "one"}, {"text": "two"}])
    assert len(set(service.artifacts) - before) == 1

    deleted = tenant.client.files.delete(file_id)

    assert (deleted.id, deleted.deleted, deleted.object) == (file_id, True, "file")
    assert set(service.artifacts) == before
    with pytest.raises(openai.NotFoundError):
        tenant.client.files.retrieve(file_id)


def test_file_that_a_job_needs_cannot_be_deleted(rich: Tenant, rows: list[dict[str, Any]]) -> None:
    file_id = rich.upload(rows)
    job = rich.client.fine_tuning.jobs.create(model="tiny", training_file=file_id)

    with pytest.raises(openai.ConflictError) as refused:
        rich.client.files.delete(file_id)

    assert refused.value.code == "file_in_use"
    rich.client.fine_tuning.jobs.cancel(job.id)
    assert rich.client.files.delete(file_id).deleted


def test_list_pages_by_key_while_files_are_added(tenant: Tenant) -> None:
    ids = [tenant.upload([{"text": str(number)}]) for number in range(5)]
    first = tenant.client.files.list(limit=2)
    assert [file.id for file in first.data] == ids[:-3:-1]
    added = tenant.upload([{"text": "later"}])

    seen = [file.id for file in first]

    assert seen == ids[::-1]
    assert added not in seen
    assert [file.id for file in tenant.client.files.list(limit=2, order="asc")] == [*ids, added]
    assert list(tenant.client.files.list(purpose="fine-tune-results")) == []


def test_inspection_names_broken_rows_and_renders_the_others(tenant: Tenant, rows: list[dict[str, Any]]) -> None:
    good = tenant.http.get(f"/v1/files/{tenant.upload(rows)}/inspection", params={"model": "tiny"}).json()
    broken_file = tenant.upload(b'{"text": "one"}\n{"text": broken\n{"text": "three"}\n')
    broken = tenant.http.get(f"/v1/files/{broken_file}/inspection").json()

    assert (good["status"], good["format"]["shape"], good["rows"]) == ("processed", "messages", 12)
    assert good["tokens"]["trained_tokens"] > 0
    assert sum(good["tokens"]["counts"]) == 12
    trained = [span["text"] for span in good["tokens"]["rows"][0]["spans"] if span["trained"]]
    assert trained == ["Unplug lamp 0, wait ten seconds and plug it in again.<|im_end|>"]
    assert (broken["status"], broken["error_count"], broken["errors"][0]["row"]) == ("error", 1, 2)


def test_a_model_whose_files_were_replaced_is_read_again(
    tenant: Tenant, rows: list[dict[str, Any]], models_dir: Path
) -> None:
    directory = shutil.copytree(models_dir / "tiny", models_dir / "renewed")
    try:
        address = f"/v1/files/{tenant.upload(rows)}/inspection"
        before = tenant.http.get(address, params={"model": "renewed"}).json()["tokens"]
        (directory / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
        after = tenant.http.get(address, params={"model": "renewed"}).json()["tokens"]
    finally:
        shutil.rmtree(directory)
    shown = ["".join(span["text"] for span in tokens["rows"][0]["spans"]) for tokens in (before, after)]
    assert ["<|im_start|>" in text for text in shown] == [True, False]


def test_upload_is_never_whole_in_memory(tenant: Tenant) -> None:
    chunk = b'{"text": "' + b"x" * 65_524 + b'"}\n'
    chunks = 768  # 48 MiB
    head = form([("purpose", None, b"fine-tune")], end=False) + (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'.encode()
    )

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(chunks):
            yield chunk
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    tracemalloc.start()
    try:
        answer = post_form(tenant, body())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == chunks * len(chunk)
    assert peak < 8 * 1024**2
    tenant.client.files.delete(answer.json()["id"])


@pytest.mark.parametrize("declares_its_length", [True, False], ids=["declared", "chunked"])
def test_too_large_upload_is_refused_and_leaves_nothing(
    service: Service, tenant: Tenant, declares_its_length: bool
) -> None:
    before = set(service.artifacts)
    size = service.settings.max_upload_bytes + 1
    body = form([("purpose", None, b"fine-tune"), ("file", "big.jsonl", b"x" * size)])

    answer = post_form(tenant, body if declares_its_length else iter([body]))

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "file_too_large"
    assert set(service.artifacts) == before
    assert list(tenant.client.files.list()) == []


def test_client_that_goes_away_leaves_nothing(service: Service, tenant: Tenant) -> None:
    before = set(service.artifacts)
    address = urlsplit(service.base_url)
    body = form([("purpose", None, b"fine-tune"), ("file", "cut.jsonl", b"x" * 500_000)], end=False)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {tenant.key}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body) * 2}\r\n\r\n"
    )

    with socket.create_connection((str(address.hostname), address.port or 80)) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: set(service.artifacts) - before, what="the upload to begin")

    wait_for(lambda: set(service.artifacts) == before, what="the store to let go of it")
    with service.runtime.database.read() as session:
        assert session.query(StoredFile).filter_by(organization_id=tenant.organization_id).count() == 0


FILE = ("file", "rows.jsonl", b'{"text": "one"}\n')
PURPOSE = ("purpose", None, b"fine-tune")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form([("purpose", None, b"assistants"), FILE]), "invalid_purpose", "purpose"),
        (form([FILE, ("purpose", None, b"assistants")]), "invalid_purpose", "purpose"),
        (form([FILE]), "invalid_request_error", "purpose"),
        (form([PURPOSE]), "invalid_request_error", "file"),
        (form([PURPOSE, ("file", None, b"text")]), "invalid_request_error", "file"),
        (form([PURPOSE, FILE, FILE]), "invalid_request_error", "file"),
        (form([PURPOSE, FILE, ("expires_after", None, b"1")]), "unknown_field", "expires_after"),
        (form([PURPOSE, ("file", "empty.jsonl", b"")]), "empty_file", "file"),
        (form([PURPOSE, FILE], end=False), "invalid_multipart", None),
        (b"not a form at all", "invalid_multipart", None),
        (b"", "invalid_multipart", None),
    ],
)
def test_bad_form_is_refused_and_leaves_nothing(
    service: Service, tenant: Tenant, body: bytes, code: str, param: str | None
) -> None:
    before = set(service.artifacts)

    answer = post_form(tenant, body)

    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert set(service.artifacts) == before
    assert list(tenant.client.files.list()) == []


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "multipart/mixed; boundary=x"])
def test_upload_of_another_content_type_is_refused(tenant: Tenant, content_type: str) -> None:
    answer = post_form(tenant, b"{}", content_type)

    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_wrong_purpose_is_refused_by_the_official_client_too(tenant: Tenant) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose must be 'fine-tune'") as refused:
        tenant.client.files.create(file=b"{}", purpose="assistants")

    assert refused.value.code == "invalid_purpose"
