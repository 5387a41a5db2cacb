"""Rows of a data file, one at a time, whatever holds them."""

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from core.datasets.charsets import UTF_8, WESTERN, detect_charset, western_notice
from core.datasets.conversations import how_to_name
from core.datasets.examples import DataFormat, Example
from core.datasets.formats import to_example
from core.datasets.json_array import iterate_array, json_problem
from core.datasets.layouts import Container, Layout, detect_layout
from core.datasets.nesting import MAX_DEPTH, MAX_KEYS, MAX_PARTS, has_too_many_parts, is_too_deep
from core.datasets.notices import NoticeCollector
from core.datasets.numbers import is_respelled, load_json
from core.datasets.repeated_keys import TWICE_FIX, repeated_key, said_twice
from core.datasets.row_errors import RowError, UnreadableRestError
from core.datasets.sources import MAX_ROW_BYTES, open_source
from core.datasets.tables import parquet_rows
from core.datasets.text_tables import table_rows
from core.errors import InvalidDatasetError

__all__ = ["Container", "Layout", "detect_layout", "read_examples", "read_rows", "scan_rows"]

Row = Mapping[str, Any]


def scan_rows(
    path: Path,
    layout: Layout | None = None,
    *,
    mapped: Collection[str] = (),
    notices: NoticeCollector | None = None,
) -> Iterator[tuple[int, Row | RowError]]:
    """Rows with their number (the line for JSON Lines and text), or what is wrong with that row; then goes on.

    Holds one row in memory, at most 16 MiB. `mapped`: the columns that are asked for, which decide whether the first
    row of a table names its columns. What is noticed of the file as a whole goes into `notices`. Raises
    InvalidDatasetError where nothing after it can be read.
    """
    layout = layout or detect_layout(path)
    notices = notices or NoticeCollector()
    if layout.container is Container.PARQUET:
        yield from parquet_rows(path)
        return
    if layout.encoding == WESTERN:
        notices.add(*western_notice())
    with open_source(path) as source:
        if layout.container is Container.JSON_LINES:
            yield from _json_lines(source, path, notices)
            return
        newline = "" if layout.container is Container.CSV else None
        text = io.TextIOWrapper(source, encoding=layout.encoding, newline=newline)
        try:
            if layout.container is Container.JSON_ARRAY:
                yield from iterate_array(text)
            elif layout.table is not None:
                layout.table.tell(notices)
                yield from table_rows(text, layout.table, mapped)
            else:
                yield from _text_rows(text, layout.by_paragraph)
        finally:
            text.detach()  # `source` is closed by its own context


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their number. Raises InvalidDatasetError (RowError for a single row) at the first that is broken."""
    for number, row in scan_rows(path):
        if isinstance(row, RowError):
            raise row
        yield number, row


def read_examples(
    path: Path,
    data_format: DataFormat,
    notices: NoticeCollector | None = None,
    look: Callable[[Row, int], None] | None = None,
) -> Iterator[Example]:
    """Every row as an example; what is worth knowing about them goes into `notices`. `look` is shown each that is read.

    Raises InvalidDatasetError (RowError for a single row) at the first that is broken, unless the format says that
    broken rows are left out.
    """
    notices = notices or NoticeCollector()
    mapped = [column for column in data_format.columns.values() if column]
    for number, row in scan_rows(path, mapped=mapped, notices=notices):
        try:
            if isinstance(row, RowError):
                raise row
            example = to_example(row, number, data_format)
        except RowError as error:
            if not data_format.skip_broken_rows or isinstance(error, UnreadableRestError):
                raise
            notices.add("skipped_rows", f"left out, as asked: {error.problem}", number)
            continue
        for code, message in example.notices:
            notices.add(code, message, number)
        if look:
            look(row, number)
        yield example


def _json_lines(
    source: io.BufferedReader, path: Path, notices: NoticeCollector
) -> Iterator[tuple[int, Row | RowError]]:
    number, encoding = 0, UTF_8
    while line := source.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDatasetError(
                f"Line {number} is longer than {MAX_ROW_BYTES:,} bytes. Put one example on each line.",
                code="row_too_large",
            )
        if encoding is not UTF_8:
            line = line.decode(encoding).encode()
        if len(line) > MAX_PARTS and has_too_many_parts(line):
            yield number, RowError(number, f"line {number} holds too many lists and objects.", None, "Shorten it.")
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.isspace():
                continue
            if encoding is UTF_8 and not _is_utf8(line):
                encoding = detect_charset(path)
                notices.add(*western_notice())
                line = line.decode(encoding).encode()
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as again:
                    yield number, _broken_line(line, number, again)
                    continue
            else:
                yield number, _broken_line(line, number, error)
                continue
        yield number, _checked_line(row, line, number)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _checked_line(row: Any, line: bytes, number: int) -> Row | RowError:
    if type(row) is not dict:
        problem = f"line {number} is a JSON {type(row).__name__}, not an object."
        return RowError(number, problem, None, how_to_name(row))
    if is_too_deep(row, opening=line.count(b"[") + line.count(b"{")):
        return RowError(number, f"line {number} is nested deeper than {MAX_DEPTH} levels.", None, "Flatten it.")
    if len(row) > MAX_KEYS:
        problem = f"line {number} has {len(row):,} columns, and {MAX_KEYS:,} are the most."
        return RowError(number, problem, None, "Nest what is not a column.")
    if (key := repeated_key(row, line)) is not None:
        return RowError(number, f"line {number} {said_twice(key)}", None, TWICE_FIX)
    if not _is_all_text(row) and is_respelled(row, line):
        try:
            return load_json(line.decode())  # type: ignore[no-any-return]
        except ValueError:  # int() refuses more than 4,300 digits
            return RowError(number, f"line {number} holds a number that is too long.", None, "Write it as text.")
    return row


def _is_all_text(row: dict[str, Any]) -> bool:
    """Whether the row is but texts, and lists of objects of texts: most are, and this is looked at for every row."""
    for value in row.values():
        if type(value) is str:
            continue
        if type(value) is not list:
            return False
        for item in value:
            if type(item) is not dict:
                return False
            for inner in item.values():
                if type(inner) is not str:
                    return False
    return True


def _broken_line(line: bytes, number: int, error: orjson.JSONDecodeError) -> RowError:
    problem = json_problem(line.decode().rstrip("\r\n"), fallback=str(error))
    error_of_row = RowError(
        number, f"line {number} is not valid JSON: {problem}.", None, "Put one complete JSON object on each line."
    )
    error_of_row.excerpt = " ".join(line[:400].decode(errors="ignore").split())[:200]
    return error_of_row


def _text_rows(text: io.TextIOWrapper, by_paragraph: bool) -> Iterator[tuple[int, Row | RowError]]:
    start, size, lines = 1, 0, list[str]()
    number = 0
    while line := text.readline(MAX_ROW_BYTES + 1):
        number += 1
        size += len(line)
        if size > MAX_ROW_BYTES:
            raise InvalidDatasetError(
                f"The text from line {start} runs over {MAX_ROW_BYTES:,} characters without a blank line. "
                "Set documents apart by blank lines.",
                code="row_too_large",
            )
        if not line.isspace():
            start = start if lines else number
            lines.append(line)
            if by_paragraph:
                continue
        if lines:
            yield start, {"text": "".join(lines).rstrip()}
        lines, size = [], 0
    if lines:
        yield start, {"text": "".join(lines).rstrip()}
