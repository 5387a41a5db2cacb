"""Files: upload, list, look, download, delete."""

import hashlib
from functools import partial
from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response

from api import downloads
from api.deps import ActorDep, IdempotencyKey, PageQuery, RuntimeDep, identify
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.files import (
    FileDeleted,
    FileObject,
    InspectionObject,
    UploadForm,
    show_file,
    show_inspection,
)
from api.schemas.hyperparameters import ChatTemplateName
from api.schemas.lists import ListObject, list_of
from api.uploads import receive_upload
from core.audit.models import AuditType
from core.datasets import file_inspection
from core.datasets import service as files
from core.datasets.models import FilePurpose, StoredFile
from core.retention import files as retention
from core.runtime import Runtime

router = APIRouter(prefix="/v1/files", tags=["Files"])


def files_page(
    after: Annotated[str | None, Query(max_length=500, description="Id of the last file of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="How many files at most.")] = 100,
) -> PageQuery:
    """The page a list of files asks for; OpenAI allows longer ones here."""
    return PageQuery(after, limit)


@router.post(
    "",
    summary="Upload a file",
    response_model=FileObject,
    responses=errors(
        *SIGNED_IN,
        "unknown_field",
        "invalid_purpose",
        "empty_file",
        "request_too_slow",
        "file_too_large",
        "storage_bytes_limit",
        "files_limit",
        "too_many_at_once",
        "unsupported_media_type",
        "idempotency_key_reused",
        "store_unavailable",
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": UploadForm.model_json_schema()}},
        }
    },
)
async def create_file(
    request: Request, runtime: RuntimeDep, actor: ActorDep, idempotency_key: IdempotencyKey = None
) -> FileObject:
    """Upload a data set. It is hashed and stored while it arrives, and inspected at once in the background."""
    form = await receive_upload(request, runtime, actor)
    # The boundary of a multipart body differs with each retry; what is in it does not.
    content = "\n".join([form.upload.filename, form.purpose, form.upload.stored.sha256])
    create_request = identify(request, runtime, actor, hashlib.sha256(content.encode()).hexdigest(), idempotency_key)
    purpose = files.upload_purpose(form.purpose)
    file = await run_sync(files.register_upload, runtime, actor.organization_id, form.upload, purpose, create_request)
    return _shown(runtime, file)


@router.get("", summary="List files", responses=errors(*SIGNED_IN))
def list_files(
    runtime: RuntimeDep,
    actor: ActorDep,
    page: Annotated[PageQuery, Depends(files_page)],
    purpose: Annotated[FilePurpose | None, Query(description="Only files with this purpose.")] = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> ListObject[FileObject]:
    """The organization's files, newest first unless `order` is `asc`."""
    with runtime.database.read() as session:
        found = files.list_files(
            session,
            actor.organization_id,
            purpose=purpose,
            after=page.after,
            limit=page.limit,
            newest=order == "desc",
        )
    return list_of(found, partial(_shown, runtime))


@router.get("/{file_id}", summary="Retrieve a file", responses=errors(*SIGNED_IN, "file_not_found"))
def retrieve_file(runtime: RuntimeDep, actor: ActorDep, file_id: str) -> FileObject:
    """One file."""
    with runtime.database.read() as session:
        return _shown(runtime, files.get_file(session, actor.organization_id, file_id))


@router.delete(
    "/{file_id}",
    summary="Delete a file",
    responses=errors(*SIGNED_IN, "file_not_found", "file_in_use", "store_unavailable"),
)
def delete_file(runtime: RuntimeDep, actor: ActorDep, file_id: str) -> FileDeleted:
    """Delete a file and its bytes. Refused while an unfinished job needs it."""
    key = runtime.database.run(lambda session: retention.delete_file(session, actor.organization_id, file_id))
    if key is not None:
        runtime.store.delete(key)
    return FileDeleted(id=file_id)


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=Response,
    responses={
        **downloads.responses("The bytes.", "application/octet-stream"),
        **errors(*SIGNED_IN, "file_not_found", "file_being_fetched", "store_unavailable"),
    },
)
def retrieve_file_content(request: Request, runtime: RuntimeDep, actor: ActorDep, file_id: str) -> Response:
    """The file's bytes as they were uploaded."""
    with runtime.database.read() as session:
        file = files.stored_file(session, actor.organization_id, file_id)
    return downloads.send(
        runtime,
        request,
        downloads.Download(
            kind=AuditType.FILE_DOWNLOADED,
            organization_id=file.organization_id,
            object_id=file.id,
            storage_key=file.storage_key,
            filename=file.filename,
            size_bytes=file.size_bytes,
            sha256=file.sha256,
        ),
    )


@router.get(
    "/{file_id}/inspection",
    summary="Inspect a file",
    responses=errors(
        *SIGNED_IN,
        "file_not_found",
        "file_not_processed",
        "too_many_at_once",
        "invalid_dataset",
        "chat_template_not_usable",
        "model_not_found",
        "unsafe_weights",
        "model_gated",
        "metadata_too_large",
        "hub_unreachable",
        "hub_token_refused",
        "secret_key_changed",
        "store_unavailable",
    ),
)
def inspect_file(
    runtime: RuntimeDep,
    actor: ActorDep,
    file_id: str,
    model: Annotated[
        str | None,
        Query(max_length=300, description="Also count tokens and render rows as this base model reads them."),
    ] = None,
    max_length: Annotated[
        int | None,
        Query(ge=16, le=1_048_576, description="Tokens above which rows would be cut; default: what the model reads."),
    ] = None,
    chat_template: Annotated[
        ChatTemplateName | None, Query(description="Render with this template, as a job with it would.")
    ] = None,
    validation_file: Annotated[
        str | None, Query(max_length=64, description="Also count the rows of this file that are in the inspected one.")
    ] = None,
    skip_broken_rows: Annotated[
        bool, Query(description="Count tokens without the rows that cannot be used, as a job that leaves them out.")
    ] = False,
) -> InspectionObject:
    """The detected format, columns, broken rows with their line numbers, duplicates, and the first rows.

    With `model`, also the token histogram and the first rows rendered through the model's chat template, each stretch
    marked as trained or not.
    """
    found = file_inspection.inspect(
        runtime,
        actor,
        file_id,
        model,
        chat_template=chat_template,
        max_length=max_length,
        validation_file_id=validation_file,
        skip_broken_rows=skip_broken_rows,
    )
    return show_inspection(found, model)


def _shown(runtime: Runtime, file: StoredFile) -> FileObject:
    return show_file(file, retention.file_kept_until(runtime.settings, file))
