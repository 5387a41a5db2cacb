"""The data of a new fine-tune: files as they come, and what is in those that were chosen."""

from dataclasses import dataclass
from typing import Literal

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Response

from api.dashboard.form import SKIP, body_of, is_of_data, kept_fields, missing_roles, new_address
from api.dashboard.page import page_router, see_other
from api.deps import ActorDep, RuntimeDep, identify
from api.forms import check_form, check_token
from api.planning import plan_request
from api.uploads import receive_upload
from core.accounts.service import Actor
from core.datasets import file_inspection
from core.datasets import service as files
from core.datasets.file_inspection import FileInspection
from core.datasets.inspection import Overlap
from core.datasets.models import FilePurpose, StoredFile
from core.datasets.notices import Notice
from core.datasets.row_errors import RowError, UnreadableRestError
from core.datasets.samples import sample_path
from core.errors import PermissionDeniedError, TunewrightError
from core.runtime import Runtime

SHOWN_FILES = 6

router = page_router()


@dataclass(frozen=True)
class Inspected:
    """A chosen file, what is in it, and under the chosen model its tokens."""

    file: StoredFile
    found: FileInspection | None = None
    problem: TunewrightError | None = None
    is_unmapped: bool = False
    is_read_anew: bool = False  # as the fields say: in another format than was found, or without broken rows

    @property
    def is_usable(self) -> bool:
        """Whether it makes sense to plan with it."""
        return not self.is_unmapped and not self.is_broken

    @property
    def is_broken(self) -> bool:
        """Whether rows of it cannot be used, and nothing is said that would change it."""
        structure = self.found.structure if self.found else None
        return structure is not None and structure.error_count > 0 and not self.is_read_anew

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What is worth knowing about it."""
        return self.found.notices if self.found else ()

    @property
    def can_skip(self) -> bool:
        """Whether broken rows may be left out and the rest be used."""
        structure = self.found.structure if self.found else None
        if self.is_read_anew:
            return isinstance(self.problem, RowError) and not isinstance(self.problem, UnreadableRestError)
        return structure is not None and structure.can_skip


@dataclass(frozen=True)
class HeldOut:
    """A file to evaluate on, and what of it is trained on too."""

    file: StoredFile
    rows: int | None = None
    overlap: Overlap | None = None
    problem: TunewrightError | None = None


def recent_files(runtime: Runtime, actor: Actor) -> list[StoredFile]:
    """The data sets that were uploaded last."""
    with runtime.database.read() as session:
        page = files.list_files(session, actor.organization_id, purpose=FilePurpose.FINE_TUNE, limit=SHOWN_FILES)
    return list(page.rows)


def inspect(runtime: Runtime, actor: Actor, fields: dict[str, str]) -> Inspected | None:
    """The training file that the fields name. Raises NotFoundError for one that is not there."""
    file_id, model = fields.get("file"), fields.get("model")
    if file_id is None:
        return None
    file = _chosen(runtime, actor, file_id)
    try:
        found = file_inspection.inspect(runtime, actor, file_id, None)
    except TunewrightError as error:
        return Inspected(file, problem=error)
    structure = found.structure
    if structure is not None and "shape" in fields:
        is_unmapped = bool(missing_roles(fields, (*structure.columns, *structure.other_columns)))
    else:
        is_unmapped = structure is not None and structure.data_format is None
    is_read_anew = "shape" in fields or SKIP in fields
    if model is None or is_unmapped:
        return Inspected(found.file, found, is_unmapped=is_unmapped, is_read_anew=is_read_anew)
    try:
        wanted = plan_request(body_of(fields))
        found = file_inspection.inspect(
            runtime,
            actor,
            file_id,
            model,
            wanted.data_format,
            chat_template=wanted.chat_template,
            max_length=wanted.requested.max_length,
            skip_broken_rows=wanted.skip_broken_rows,
        )
    except TunewrightError as error:
        return Inspected(found.file, found, error, is_read_anew=is_read_anew)
    return Inspected(found.file, found, is_read_anew=is_read_anew)


def inspect_held_out(runtime: Runtime, actor: Actor, fields: dict[str, str]) -> HeldOut | None:
    """The file to evaluate on that the fields name. Raises NotFoundError for one that is not there."""
    file_id, training_id = fields.get("validation_file"), fields.get("file")
    if file_id is None:
        return None
    file = _chosen(runtime, actor, file_id)
    try:
        structure = file_inspection.inspect(runtime, actor, file_id, None).structure
        rows = structure.rows if structure else None
        if training_id is None:
            return HeldOut(file, rows)
        wanted = {name: value for name, value in fields.items() if name == "model" or is_of_data(name)}
        asked = plan_request(body_of({"model": "any", **wanted}))
        found = file_inspection.inspect(
            runtime,
            actor,
            training_id,
            None,
            asked.data_format,
            validation_file_id=file_id,
            skip_broken_rows=asked.skip_broken_rows,
        )
    except TunewrightError as error:
        return HeldOut(file, problem=error)
    return HeldOut(file, rows, found.overlap)


def _chosen(runtime: Runtime, actor: Actor, file_id: str) -> StoredFile:
    with runtime.database.read() as session:
        return files.get_file(session, actor.organization_id, file_id)


@router.post("/new/files")
async def upload_file(
    request: Request, runtime: RuntimeDep, actor: ActorDep, role: Literal["file", "validation_file"] = "file"
) -> Response:
    """Take a data set, by drag and drop or a plain form, and go on with it as the address says."""
    form = await receive_upload(request, runtime, actor, more_fields=("csrf_token",))
    try:
        check_token(request, form.fields.get("csrf_token", ""))
    except PermissionDeniedError:
        await run_sync(runtime.store.delete, form.upload.stored.key)
        raise
    file = await run_sync(_register, request, runtime, actor, form.upload)
    return see_other(new_address({**kept_fields(dict(request.query_params)), role: file.id}))


@router.post("/new/sample", dependencies=[Depends(check_form)])
def use_sample(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Go on with the sample data set, as if it had been uploaded."""
    path = sample_path()
    known = next((file for file in recent_files(runtime, actor) if file.filename == path.name), None)
    if known is None:
        upload = files.store_upload(runtime, actor.organization_id, path.name, [path.read_bytes()])
        known = _register(request, runtime, actor, upload)
    return see_other(new_address({**kept_fields(dict(request.query_params)), "file": known.id}))


def _register(request: Request, runtime: Runtime, actor: Actor, upload: files.Upload) -> StoredFile:
    create = identify(request, runtime, actor, upload.stored.sha256, None)
    return files.register_upload(runtime, actor.organization_id, upload, FilePurpose.FINE_TUNE, create)
