"""What is in a data file, found before anything is charged: its structure, and its tokens under one model."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from core.datasets.damaged_text import text_notices
from core.datasets.detection import complete_format, detect_format
from core.datasets.examples import DataFormat, Example
from core.datasets.formats import plain_conversation, to_example
from core.datasets.known_shapes import KnownShapeError
from core.datasets.measurement import TokenHistogram, TokenInspection, measure_tokens
from core.datasets.notices import Notice, NoticeCollector, combined
from core.datasets.previews import ColumnSample, ColumnSamples, clipped, excerpt
from core.datasets.reading import Layout, detect_layout, scan_rows
from core.datasets.row_errors import RowError, UnreadableRestError
from core.datasets.unread import COLUMN_NOT_READ, UnreadColumns
from core.datasets.values import is_blank
from core.errors import InvalidDatasetError

__all__ = [
    "Inspection",
    "Overlap",
    "RowIssue",
    "TokenHistogram",
    "TokenInspection",
    "all_notices",
    "check_structure",
    "check_trainable",
    "fingerprint",
    "inspect_file",
    "measure_tokens",
    "overlap",
]

MIN_EXAMPLES = 2
SKIP_ADVICE = ' Mend them, or leave them out with "format": {"skip_broken_rows": true}.'
_DETECTION_ROWS = 100
_PREVIEW_ROWS = 5
_SAMPLED_ROWS = 20
_EXCERPT_CHARACTERS = 200
_SHOWN_ROWS = 20
_REMEMBERED_ROWS = 1_000_000  # rows among which the places of duplicates are told; their number is exact beyond


@dataclass(frozen=True)
class RowIssue:
    """One row that cannot be used. `row` is the line for JSON Lines, `excerpt` how the row begins."""

    row: int
    message: str
    fix: str
    param: str | None = None
    excerpt: str = ""

    def __str__(self) -> str:
        return f"Row {self.row}: {self.message} {self.fix}".rstrip()


@dataclass(frozen=True)
class Inspection:
    """The structure of a data file. Every row was read.

    `rows` counts all that are not blank, broken ones included; `errors` holds the first of `error_count`.
    `duplicates` counts rows that repeat an earlier one; `untrainable_rows` those in which nothing would be trained.
    `data_format` is None, and `format_problem` says why, where the columns mean nothing without a column mapping;
    `is_known_shape` where it says what else the rows are.
    `samples` shows values of each column. `other_columns`: what a table's columns are called if its first row is not
    what it was taken for, names or data; they can be mapped too. `is_cut_short`: after the last of the errors nothing
    could be read, so broken rows cannot be left out.
    """

    data_format: DataFormat | None
    container: str
    columns: tuple[str, ...]
    rows: int
    size_bytes: int
    errors: tuple[RowIssue, ...] = ()
    error_count: int = 0
    duplicates: int = 0
    duplicate_rows: tuple[int, ...] = ()
    untrainable_rows: int = 0
    first_untrainable_rows: tuple[int, ...] = ()
    preview: tuple[Example, ...] = ()
    format_problem: str = ""
    notices: tuple[Notice, ...] = ()
    samples: tuple[ColumnSample, ...] = ()
    other_columns: tuple[str, ...] = ()
    is_cut_short: bool = False
    is_known_shape: bool = False

    @property
    def can_skip(self) -> bool:
        """Whether there are broken rows and the others can be used without them."""
        return 0 < self.error_count < self.rows and not self.is_cut_short

    @property
    def way_on(self) -> str:
        """What to do about broken rows beside mending them; "" where there is nothing else."""
        return SKIP_ADVICE if self.can_skip else ""

    def require_format(self) -> DataFormat:
        """The detected format. Raises InvalidDatasetError (`unknown_format`)."""
        if self.data_format is None:
            raise InvalidDatasetError(self.format_problem, code="unknown_format", param="format")
        return self.data_format


@dataclass(frozen=True)
class Overlap:
    """Validation rows that are also in the training file: `count` of them, the first by number."""

    count: int
    rows: tuple[int, ...]


class _Survey:
    """What is gathered while rows pass by."""

    def __init__(self, data_format: DataFormat | None, max_errors: int) -> None:
        self.data_format = data_format
        self.max_errors = max_errors
        self.rows = self.error_count = self.untrainable = 0
        self.errors: list[RowIssue] = []
        self.first_untrainable: list[int] = []
        self.columns = ColumnSamples()
        self.notices = NoticeCollector()
        self.unread = UnreadColumns(data_format) if data_format else None
        self.is_cut_short = False
        self._last_keys: object = None
        self.preview: list[Example] = []
        self.fingerprints = array("q")
        self.seen: set[int] = set()
        self.duplicate_rows: list[int] = []

    def take(self, number: int, row: Mapping[str, Any] | RowError) -> None:
        self.rows += 1
        if isinstance(row, RowError):
            self._note_error(row)
            return
        if (keys := row.keys()) != self._last_keys or self.rows <= _SAMPLED_ROWS:
            self._last_keys = keys
            self.columns.take(row, with_values=self.rows <= _SAMPLED_ROWS)
        if self.data_format is None:
            return
        plain = plain_conversation(row, self.data_format) if len(self.preview) == _PREVIEW_ROWS else None
        if plain is not None:
            self._look(row, number)
            for code, message in text_notices(plain[1::2]):
                self.notices.add(code, message, number)
            answers = (text for role, text in zip(plain[::2], plain[1::2], strict=True) if role == "assistant")
            self._count(number, hash((None, *plain)), not all(map(is_blank, answers)))
            return
        try:
            example = to_example(row, number, self.data_format)
        except RowError as error:
            self._note_error(error, row)
            return
        for code, message in example.notices:
            self.notices.add(code, message, number)
        self._look(row, number)
        if len(self.preview) < _PREVIEW_ROWS:
            self.preview.append(clipped(example))
        self._count(number, fingerprint(example), _is_trainable(example))

    def _look(self, row: Mapping[str, Any], number: int) -> None:
        if self.unread:
            self.unread.take(row, number)

    def _count(self, row: int, mark: int, is_trainable: bool) -> None:
        if not is_trainable:
            self.untrainable += 1
            if len(self.first_untrainable) < _SHOWN_ROWS:
                self.first_untrainable.append(row)
        self.fingerprints.append(mark)
        if len(self.seen) < _REMEMBERED_ROWS and len(self.duplicate_rows) < _SHOWN_ROWS:
            if mark in self.seen:
                self.duplicate_rows.append(row)
            else:
                self.seen.add(mark)

    def _note_error(self, error: RowError, row: Mapping[str, Any] | None = None) -> None:
        self.error_count += 1
        self.is_cut_short = self.is_cut_short or isinstance(error, UnreadableRestError)
        if len(self.errors) < self.max_errors:
            shown = excerpt(row, _EXCERPT_CHARACTERS) if row is not None else error.excerpt
            self.errors.append(RowIssue(error.row, error.problem, error.fix, error.param, shown))

    def duplicates(self) -> int:
        if not self.fingerprints:
            return 0
        marks = pa.Array.from_buffers(pa.int64(), len(self.fingerprints), [None, pa.py_buffer(self.fingerprints)])
        return len(self.fingerprints) - int(pc.count_distinct(marks).as_py())


def inspect_file(path: Path, *, data_format: DataFormat | None = None, max_errors: int = 20) -> Inspection:
    """Read every row and check that it can become an example, in bounded memory.

    `data_format` overrides detection. Bad rows are collected; raises InvalidDatasetError only where the file as a
    whole cannot be read: empty, not UTF-8, damaged, binary.
    """
    layout = detect_layout(path)
    problem, is_known, is_detected = "", False, data_format is None
    if data_format is None:
        data_format, problem, is_known = _detect(path, layout)
    survey = _Survey(data_format, max_errors)
    mapped = [column for column in data_format.columns.values() if column] if data_format else []
    for number, row in scan_rows(path, layout, mapped=mapped, notices=survey.notices):
        survey.take(number, row)
    if survey.rows == 0:
        raise InvalidDatasetError("The file holds no rows. Upload one with at least 2.", code="empty_file")
    if data_format is not None and is_detected:
        data_format = complete_format(data_format, survey.columns.names)
    return Inspection(
        data_format=data_format,
        container=layout.container.value,
        columns=survey.columns.names,
        rows=survey.rows,
        size_bytes=path.stat().st_size,
        errors=tuple(survey.errors),
        error_count=survey.error_count,
        duplicates=survey.duplicates(),
        duplicate_rows=tuple(survey.duplicate_rows),
        untrainable_rows=survey.untrainable,
        first_untrainable_rows=tuple(survey.first_untrainable),
        preview=tuple(survey.preview),
        format_problem=problem,
        notices=(*survey.notices.notices(), *(survey.unread.notices() if survey.unread else ())),
        samples=survey.columns.samples(),
        other_columns=layout.table.other_names if layout.table else (),
        is_cut_short=survey.is_cut_short,
        is_known_shape=is_known,
    )


def all_notices(structure: Inspection | None, tokens: TokenInspection | None) -> tuple[Notice, ...]:
    """All that was noticed in a file; of the columns, as they are read for these tokens."""
    found = structure.notices if structure else ()
    if tokens is None:
        return found
    return combined((notice for notice in found if notice.code != COLUMN_NOT_READ), tokens.notices)


def _detect(path: Path, layout: Layout) -> tuple[DataFormat | None, str, bool]:
    """The format, or why there is none and whether that is known by name."""
    sample: list[Mapping[str, Any]] = []
    for number, row in scan_rows(path, layout):
        if not isinstance(row, RowError):
            sample.append(row)
        if len(sample) == _DETECTION_ROWS or number >= 10 * _DETECTION_ROWS:
            break
    if not sample:
        return None, "No row could be read, so the format is not known.", False
    try:
        return detect_format(sample), "", False
    except InvalidDatasetError as error:
        return None, error.message, isinstance(error, KnownShapeError)


def _is_trainable(example: Example) -> bool:
    if example.text is not None:
        return bool(example.text.strip())
    return any(message.trained for message in example.messages)


def fingerprint(example: Example) -> int:
    """64 bits that are equal for equal examples within one process, whatever file and format they came in."""
    parts: list[object] = [example.text]
    for message in example.messages:
        parts += (message.role, message.content)
        if message.extra:
            parts.append(str(message.extra))
        if message.role == "assistant" and not message.trained and not is_blank(message.content):
            parts.append(False)
    if example.tools:
        parts.append(str(example.tools))
    return hash(tuple(parts))


def overlap(train: Iterable[Example], validation: Iterable[Example]) -> Overlap:
    """Which validation examples are also trained on. Holds 64 bits of each validation example."""
    places: dict[int, list[int]] = {}
    for example in validation:
        places.setdefault(fingerprint(example), []).append(example.row)
    found = {mark for mark in map(fingerprint, train) if mark in places}
    rows = sorted(row for mark in found for row in places[mark])
    return Overlap(len(rows), tuple(rows[:_SHOWN_ROWS]))


def check_structure(
    inspection: Inspection, *, skip_broken_rows: bool = False, param: str | None = None, advice: str = SKIP_ADVICE
) -> None:
    """Refuse a file whose rows cannot be trained on by any model. Raises InvalidDatasetError.

    `skip_broken_rows`: rows that cannot be used are left out, so they are none. `advice`: how one asks for that, where
    it helps.

    Codes: `invalid_dataset` (broken rows), `unknown_format`, `too_few_examples`, `no_trainable_tokens`.
    """
    if inspection.error_count and not (skip_broken_rows and inspection.can_skip):
        shown = " ".join(str(issue) for issue in inspection.errors[:3])
        more = f" And {inspection.error_count - 3} more." if inspection.error_count > 3 else ""
        way_on = advice if inspection.can_skip else ""
        message = f"{inspection.error_count} of {inspection.rows} rows cannot be used. {shown}{more}{way_on}"
        raise InvalidDatasetError(message, param=param)
    inspection.require_format()
    good_rows = inspection.rows - inspection.error_count
    _check_count(good_rows, param)
    if inspection.untrainable_rows == good_rows:
        raise InvalidDatasetError(
            f"None of the {good_rows} rows holds anything to train: no assistant message with text and a weight "
            "other than 0, no completion, no text. Add the answers the model should learn.",
            code="no_trainable_tokens",
            param=param,
        )


def check_trainable(tokens: TokenInspection, *, param: str | None = None) -> None:
    """Refuse a file that would train nothing under this model. Raises InvalidDatasetError.

    Codes: `too_few_examples`, `no_trainable_tokens`.
    """
    _check_count(tokens.statistics.examples, param)
    if tokens.statistics.trained_tokens > 0:
        return
    cut = (
        f" {tokens.truncated_rows} rows are cut off at {tokens.max_length} tokens, before their answer ends: "
        "raise max_length."
        if tokens.truncated_rows
        else ""
    )
    raise InvalidDatasetError(
        f"None of the {tokens.statistics.tokens:,} tokens in {tokens.statistics.examples} rows would be trained: no "
        "assistant message with text and a weight other than 0, no completion, no text. "
        f"Add the answers the model should learn.{cut}",
        code="no_trainable_tokens",
        param=param,
    )


def _check_count(examples: int, param: str | None) -> None:
    if examples < MIN_EXAMPLES:
        raise InvalidDatasetError(
            f"The file holds {examples} example; at least {MIN_EXAMPLES} are needed, and 50 or more are useful.",
            code="too_few_examples",
            param=param,
        )
