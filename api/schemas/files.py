"""Files and what is in them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, cast

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from api.schemas.base import IdentifiedBody, RequestBody, ResponseBody, unix_seconds, unix_seconds_or_none
from api.schemas.examples import INSPECTION_EXAMPLE
from core.datasets.examples import Example
from core.datasets.file_inspection import FileInspection
from core.datasets.hub_files import source_of
from core.datasets.inspection import RowIssue
from core.datasets.measurement import RenderedRow, TokenInspection
from core.datasets.models import FilePurpose, FileStatus, StoredFile
from core.datasets.notices import Notice

WireStatus = Literal["uploaded", "processed", "error"]
FILE_EXAMPLE: JsonDict = {
    "id": "file-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
    "object": "file",
    "bytes": 48213,
    "created_at": 1795219200,
    "expires_at": None,
    "filename": "support.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "status_details": None,
    "source": None,
}


class HubSourceObject(ResponseBody):
    """What of the hub a file is."""

    repository: str
    revision: str = Field(description="The commit that it was fetched at.")
    config: str
    split: str
    reference: str = Field(description="As `training_file`, gives the same bytes again.")


class FileObject(IdentifiedBody):
    """An uploaded file, or one that a job produced."""

    model_config = ConfigDict(json_schema_extra={"examples": [FILE_EXAMPLE]})

    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: int | None = Field(
        None,
        description="Kept at least until then, as the service is set up; null: until it is deleted.",
    )
    filename: str
    purpose: FilePurpose
    status: WireStatus = Field(description="`uploaded`, then `processed`, or `error` with `status_details`.")
    status_details: str | None = Field(
        description="What is wrong with which row; null unless status is `error`, or the file is still being fetched."
    )
    source: HubSourceObject | None = Field(None, description="Where on the hub it came from; null for an upload.")


class FileDeleted(ResponseBody):
    """The file is gone."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "file-01JDZ5T0Q6W2N8V4K7R3M9X1YB", "object": "file", "deleted": True}]}
    )

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FormatObject(ResponseBody):
    """How rows become examples."""

    shape: str = Field(examples=["messages"])
    kind: str = Field(description="`chat`, `completion` or `text`: what of a row is trained.", examples=["chat"])
    columns: dict[str, str] = Field(description="Each role of the shape and the column that holds it.")


class RowErrorObject(ResponseBody):
    """A row that cannot be used."""

    row: int = Field(description="1-based; the line number for JSON Lines.")
    message: str
    fix: str
    param: str | None
    excerpt: str = Field(description="How the row begins.")


class PreviewTurn(ResponseBody):
    """One turn of a previewed row."""

    role: str
    content: str
    trained: bool


class PreviewRow(ResponseBody):
    """One of the first rows as the service understands it, before any model's template."""

    row: int
    messages: list[PreviewTurn]
    text: str | None


class Span(ResponseBody):
    """A stretch of a rendered row."""

    text: str
    trained: bool = Field(description="Whether its tokens are trained.")


class RenderedRowObject(ResponseBody):
    """A row exactly as the model reads it."""

    row: int
    tokens: int
    scored_tokens: int = Field(description="Those of them that the loss is taken over.")
    trained_tokens: int = Field(description="The same number, by its older name.")
    is_clipped: bool
    spans: list[Span]


class TokensObject(ResponseBody):
    """Tokens of the file under one model."""

    model: str
    examples: int
    tokens: int
    scored_tokens: int = Field(description="Tokens that the loss is taken over, in one pass over the data.")
    trained_tokens: int = Field(description="The same number, by its older name.")
    longest: int = Field(description="Tokens of the longest example, at most `max_length`.")
    sampled: bool = Field(description="Whether totals are scaled up from a sample.")
    edges: list[int] = Field(description="Histogram: bucket i holds lengths from edges[i] to below edges[i + 1].")
    counts: list[int]
    max_length: int | None
    truncated_rows: int = Field(description="Rows longer than `max_length`, which are cut, not refused.")
    truncated_tokens: int
    masked_rows: int = Field(description="Rows in which nothing is trained.")
    first_masked_rows: list[int]
    eos_trained: bool = Field(description="Whether the model learns to end its answers in every row that is not cut.")
    rows_without_eos: int = Field(description="Rows that are trained without an end to learn; cut ones are among them.")
    chat_template: str | None = Field(description="The named template; null: the model's own, or none.")
    rows: list[RenderedRowObject]


class NoticeObject(ResponseBody):
    """Something about a file that is worth knowing before it is trained on; nothing is refused for it."""

    code: str = Field(description="Stable, in snake_case.")
    message: str
    rows: int = Field(description="How many rows it holds for; 0 where it is about the whole file.")
    first_row: int | None


class OverlapObject(ResponseBody):
    """Rows of the validation file that are in the training file too."""

    count: int
    rows: list[int] = Field(description="The first of them, as numbered in the validation file.")


class InspectionObject(ResponseBody):
    """What is in a data file. Every row was read."""

    model_config = ConfigDict(json_schema_extra={"examples": [INSPECTION_EXAMPLE]})

    object: Literal["file.inspection"] = "file.inspection"
    file_id: str
    status: WireStatus
    status_details: str | None
    format: FormatObject | None = Field(description="Null where the columns mean nothing without a `format`.")
    format_problem: str | None
    container: str | None = Field(examples=["jsonl"])
    columns: list[str]
    samples: dict[str, list[str]] = Field(description="The first different values of each column, cut.")
    other_columns: list[str] = Field(
        description="What a table's columns are called if its first row is not what it was taken for, names or data."
    )
    rows: int
    errors: list[RowErrorObject] = Field(description="The first of `error_count`.")
    error_count: int
    can_skip_broken_rows: bool = Field(description="Whether a job may leave them out, as `format` can say.")
    duplicates: int = Field(description="Rows that repeat an earlier one.")
    duplicate_rows: list[int] = Field(description="The first of them.")
    untrainable_rows: int = Field(description="Rows in which no model would be trained.")
    first_untrainable_rows: list[int]
    overlap: OverlapObject | None = Field(description="Only where a `validation_file` is named.")
    notices: list[NoticeObject] = Field(description="With a `model`, also what its template and tokenizer do.")
    preview: list[PreviewRow]
    tokens: TokensObject | None = Field(description="Only where a `model` is asked for and the rows can be used.")


class UploadForm(RequestBody):
    """The fields of an upload. The file is streamed; it never lies in memory as a whole."""

    file: str = Field(
        description="The data: JSON Lines, a JSON array, CSV, TSV, Parquet or text, plain or gzipped.",
        json_schema_extra={"format": "binary"},
    )
    purpose: Literal["fine-tune"]


def show_file(file: StoredFile, expires_at: datetime | None = None) -> FileObject:
    """A file as the wire shows it."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=unix_seconds(file.created_at),
        expires_at=unix_seconds_or_none(expires_at),
        filename=file.filename,
        purpose=FilePurpose(file.purpose),
        status=_status(file),
        status_details="Being fetched from the hub." if file.status is FileStatus.FETCHING else file.status_details,
        source=_source(file),
    )


def _status(file: StoredFile) -> WireStatus:
    """OpenAI's clients know three states."""
    shown = FileStatus.UPLOADED if file.status is FileStatus.FETCHING else file.status
    return cast(WireStatus, shown.value)


def _source(file: StoredFile) -> HubSourceObject | None:
    source = source_of(file)
    if source is None:
        return None
    return HubSourceObject(
        repository=source.repository,
        revision=source.revision,
        config=source.config,
        split=source.split,
        reference=source.reference,
    )


def show_inspection(inspected: FileInspection, model: str | None) -> InspectionObject:
    """An inspection as the wire shows it; all zeros where the file as a whole cannot be read."""
    file, found, tokens = inspected.file, inspected.structure, inspected.tokens
    known: dict[str, Any] = {
        "file_id": file.id,
        "status": _status(file),
        "status_details": file.status_details,
        "tokens": show_tokens(model, tokens) if model and tokens else None,
        "overlap": OverlapObject(**vars(inspected.overlap)) if inspected.overlap else None,
    }
    if found is None:
        return InspectionObject(
            **known,
            format=None,
            format_problem=None,
            container=None,
            columns=[],
            samples={},
            other_columns=[],
            rows=0,
            errors=[],
            error_count=0,
            can_skip_broken_rows=False,
            duplicates=0,
            duplicate_rows=[],
            untrainable_rows=0,
            first_untrainable_rows=[],
            notices=[],
            preview=[],
        )
    form = found.data_format
    return InspectionObject(
        **known,
        format=FormatObject(shape=form.shape, kind=form.kind, columns=dict(form.columns)) if form else None,
        format_problem=found.format_problem or None,
        container=found.container,
        columns=list(found.columns),
        samples={sample.name: list(sample.values) for sample in found.samples},
        other_columns=list(found.other_columns),
        rows=found.rows,
        errors=[_row_error(issue) for issue in found.errors],
        error_count=found.error_count,
        can_skip_broken_rows=found.can_skip,
        duplicates=found.duplicates,
        duplicate_rows=list(found.duplicate_rows),
        untrainable_rows=found.untrainable_rows,
        first_untrainable_rows=list(found.first_untrainable_rows),
        notices=show_notices(inspected.notices),
        preview=[_preview(example) for example in found.preview],
    )


def show_tokens(model: str, tokens: TokenInspection) -> TokensObject:
    """Token counts as the wire shows them."""
    statistics = tokens.statistics
    return TokensObject(
        model=model,
        examples=statistics.examples,
        tokens=statistics.tokens,
        scored_tokens=statistics.trained_tokens,
        trained_tokens=statistics.trained_tokens,
        longest=min(statistics.longest, tokens.max_length or statistics.longest),
        sampled=statistics.sampled,
        edges=list(tokens.histogram.edges),
        counts=list(tokens.histogram.counts),
        max_length=tokens.max_length,
        truncated_rows=tokens.truncated_rows,
        truncated_tokens=tokens.truncated_tokens,
        masked_rows=tokens.masked_rows,
        first_masked_rows=list(tokens.first_masked_rows),
        eos_trained=tokens.eos_trained,
        rows_without_eos=tokens.rows_without_eos,
        chat_template=tokens.chat_template,
        rows=[_rendered(row) for row in tokens.preview],
    )


def show_notices(notices: Iterable[Notice]) -> list[NoticeObject]:
    """Notices as the wire shows them."""
    return [NoticeObject(**vars(notice)) for notice in notices]


def _row_error(issue: RowIssue) -> RowErrorObject:
    return RowErrorObject(row=issue.row, message=issue.message, fix=issue.fix, param=issue.param, excerpt=issue.excerpt)


def _preview(example: Example) -> PreviewRow:
    turns = [PreviewTurn(role=turn.role, content=turn.content, trained=turn.trained) for turn in example.messages]
    return PreviewRow(row=example.row, messages=turns, text=example.text)


def _rendered(row: RenderedRow) -> RenderedRowObject:
    return RenderedRowObject(
        row=row.row,
        tokens=row.tokens,
        scored_tokens=row.trained_tokens,
        trained_tokens=row.trained_tokens,
        is_clipped=row.is_clipped,
        spans=[Span(text=text, trained=trained) for text, trained in row.segments],
    )
