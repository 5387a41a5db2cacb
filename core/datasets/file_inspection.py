"""What is in a stored file: its structure, and under a model its tokens."""

from dataclasses import dataclass, replace

from core.accounts.models import Scope
from core.accounts.service import Actor
from core.datasets import inspecting
from core.datasets import service as files
from core.datasets.examples import DataFormat
from core.datasets.inspection import Inspection, Overlap, TokenInspection, all_notices, check_structure
from core.datasets.measuring import base_model_of, measure, overlapping_rows
from core.datasets.models import FileStatus, StoredFile
from core.datasets.notices import Notice
from core.db.serialization import deserialize
from core.errors import InvalidDatasetError, NotYetError
from core.runtime import Runtime

LONGEST = 2**31  # tokens: longer than any model reads


@dataclass(frozen=True)
class FileInspection:
    """A file, what its inspection found (None where it could not be read or still waits), and its tokens if asked.

    `overlap`: rows of the validation file that was named which are in this one too.
    """

    file: StoredFile
    structure: Inspection | None
    tokens: TokenInspection | None
    overlap: Overlap | None = None

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What was noticed in it, with a model also of its template and tokenizer."""
        return all_notices(self.structure, self.tokens)


def inspect(
    runtime: Runtime,
    actor: Actor,
    file_id: str,
    model_id: str | None,
    data_format: DataFormat | None = None,
    *,
    chat_template: str | None = None,
    max_length: int | None = None,
    validation_file_id: str | None = None,
    skip_broken_rows: bool = False,
) -> FileInspection:
    """What is in a file and, with a model, its tokens, in the format that is detected unless one is given.

    Rows count as truncated above `max_length`, or above what the model reads. With a validation file, also which of
    its rows are in this one. Raises NotFoundError, InvalidDatasetError, NotYetError for a validation file that is
    not inspected yet, InvalidRequestError for a template that the model cannot read, and what `find_base_model` raises.
    """
    file = _inspected_file(runtime, actor, file_id, "file_id")
    structure = files.inspection_of(file)
    tokens = None
    is_readable = file.status is FileStatus.PROCESSED or (
        structure is not None and (data_format is not None or skip_broken_rows)
    )
    if model_id is not None and is_readable:
        may_fetch = actor.scope.includes(Scope.WRITE)  # a question that only reads should not bring anything here
        base_model = base_model_of(runtime, actor, model_id, may_fetch=may_fetch)
        longest = min(max_length or LONGEST, int(base_model.config.get("max_position_embeddings") or LONGEST))
        mapping = format_of(file, data_format, skip_broken_rows, "file_id")
        tokens = measure(runtime, base_model, file, mapping, chat_template, longest if longest < LONGEST else None)
    repeated = None
    if validation_file_id is not None and is_readable:
        reads_broken = data_format is not None or skip_broken_rows
        held_out = usable_file(runtime, actor, validation_file_id, "validation_file", reads_broken)
        repeated = overlapping_rows(
            runtime,
            file,
            held_out,
            format_of(file, data_format, skip_broken_rows, "file_id"),
            format_of(held_out, data_format, skip_broken_rows, "validation_file"),
        )
    return FileInspection(file, structure, tokens, repeated)


def _inspected_file(runtime: Runtime, actor: Actor, file_id: str, param: str) -> StoredFile:
    """The file, inspected now where that is quick."""
    with runtime.database.read() as session:
        file = files.get_file(session, actor.organization_id, file_id, param=param)
    if file.status is FileStatus.UPLOADED and file.size_bytes <= runtime.settings.inline_inspection_bytes:
        inspecting.ensure_inspected(runtime, file_id)
        with runtime.database.read() as session:
            file = files.get_file(session, actor.organization_id, file_id, param=param)
    return file


def usable_file(runtime: Runtime, actor: Actor, file_id: str, param: str, reads_broken: bool) -> StoredFile:
    """The file, inspected. `reads_broken`: one with broken rows is read too, as the request says how."""
    with runtime.database.read() as session:
        files.stored_file(session, actor.organization_id, file_id, param=param)
    file = _inspected_file(runtime, actor, file_id, param)
    if file.status is FileStatus.UPLOADED:
        raise NotYetError(
            f"The file {file_id} ({file.size_bytes:,} bytes) is still being inspected. Try again in a moment.",
            code="file_not_processed",
            param=param,
            retry_after_seconds=files.FETCH_RETRY_SECONDS,
        )
    found = files.inspection_of(file)
    if file.status is FileStatus.ERROR and not (reads_broken and found):
        way_on = found.way_on if found else ""
        raise InvalidDatasetError(
            f"The file {file.filename!r} cannot be used: {file.status_details}{way_on}",
            code="invalid_dataset",
            param=param,
        )
    return file


def format_of(file: StoredFile, given: DataFormat | None, skip_broken_rows: bool, param: str) -> DataFormat:
    """The format that is given, or else the one that was found in the file. Raises InvalidDatasetError."""
    if given is None:
        inspection = deserialize(Inspection, file.inspection)
        check_structure(inspection, skip_broken_rows=skip_broken_rows, param=param)
        given = inspection.require_format()
    return replace(given, skip_broken_rows=skip_broken_rows)
