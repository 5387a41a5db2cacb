"""Sending stored bytes: by a link to the store where it gives one, else through this process."""

from collections.abc import Iterator
from mimetypes import guess_type
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict

from core.audit import service as audit
from core.audit.models import AuditType
from core.jobs import service as jobs
from core.runtime import Runtime

CHUNK_BYTES = 256 * 1024
LINK_SECONDS = 300
# Uploaded content is someone's text. It is never shown as a page of this origin.
_SANDBOX = "default-src 'none'; sandbox"


def responses(description: str, *media_types: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of a route that answers with `send`."""
    return {
        200: {"description": description, "content": {media_type: {} for media_type in media_types}},
        302: {"description": f"A link to the bytes, good for {LINK_SECONDS // 60} minutes."},
        304: {"description": "Unchanged since the `etag` in `If-None-Match`."},
    }


class Download(BaseModel):
    """What is to be sent, and under which name."""

    model_config = ConfigDict(frozen=True)

    kind: AuditType
    organization_id: str
    object_id: str
    storage_key: str
    filename: str
    size_bytes: int
    sha256: str
    media_type: str = "application/octet-stream"


def send_artifact(runtime: Runtime, request: Request, organization_id: str, job_id: str, name: str) -> Response:
    """What a job published under this name. Raises NotFoundError, StoreError."""
    with runtime.database.read() as session:
        artifact = jobs.get_artifact(session, organization_id, job_id, name)
    download = Download(
        kind=AuditType.ARTIFACT_DOWNLOADED,
        organization_id=organization_id,
        object_id=job_id,
        storage_key=artifact.storage_key,
        filename=artifact.name,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        media_type=guess_type(artifact.name)[0] or "application/octet-stream",
    )
    return send(runtime, request, download)


def send_checkpoint(
    runtime: Runtime, request: Request, organization_id: str, job_id: str, checkpoint_id: str
) -> Response:
    """A checkpoint that is still stored. Raises NotFoundError, StoreError."""
    checkpoint = runtime.database.run(
        lambda session: jobs.take_checkpoint(session, organization_id, job_id, checkpoint_id)
    )
    assert checkpoint.storage_key is not None, "a checkpoint that is found is stored"
    assert checkpoint.size_bytes is not None, "its size with it"
    assert checkpoint.sha256 is not None, "and its hash"
    download = Download(
        kind=AuditType.CHECKPOINT_DOWNLOADED,
        organization_id=organization_id,
        object_id=checkpoint.id,
        storage_key=checkpoint.storage_key,
        filename=f"{checkpoint.job_id}-step-{checkpoint.step}.tar",
        size_bytes=checkpoint.size_bytes,
        sha256=checkpoint.sha256,
        media_type="application/x-tar",
    )
    return send(runtime, request, download)


def send(runtime: Runtime, request: Request, download: Download) -> Response:
    """The response to a download: 302 to the store, 304 for what the client has already, or the bytes."""
    etag = f'"{download.sha256}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"etag": etag})
    runtime.database.run(
        lambda session: audit.record(
            session,
            download.kind,
            organization_id=download.organization_id,
            object_id=download.object_id,
            filename=download.filename,
        )
    )
    link = runtime.store.download_url(download.storage_key, download.filename, LINK_SECONDS)
    if link is not None:
        return RedirectResponse(link, status_code=302)
    stream = runtime.store.open(download.storage_key)

    def chunks() -> Iterator[bytes]:
        with stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    return StreamingResponse(
        chunks(),
        media_type=download.media_type,
        headers={
            "content-length": str(download.size_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(download.filename, safe='')}",
            "content-security-policy": _SANDBOX,
            "cache-control": "private, no-cache",
            "etag": etag,
        },
    )
