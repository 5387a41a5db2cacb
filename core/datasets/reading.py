"""Rows of a data file, one at a time: JSON Lines, JSON arrays, CSV, Parquet or plain text, known by content."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

from core.datasets.examples import DataFormat, Example
from core.datasets.formats import RowError, to_example
from core.datasets.json_array import iterate_array, json_problem
from core.datasets.nesting import MAX_DEPTH, is_too_deep
from core.datasets.sources import MAX_ROW_BYTES, find_invalid_utf8, open_source
from core.datasets.tables import parquet_rows
from core.errors import InvalidDatasetError

__all__ = ["Container", "Layout", "detect_layout", "read_examples", "read_rows", "scan_rows"]

Row = Mapping[str, Any]

_HEAD_BYTES = 64 * 1024
_DELIMITERS = ("\t", ",", ";", "|")
_HEADER_CELL = re.compile(r"[^\W\d][\w .()/-]{0,39}")
_KNOWN_COLUMNS = frozenset(
    {
        "prompt", "completion", "question", "answer", "instruction", "input", "output", "response", "text", "content",
        "messages", "conversations", "system", "query", "user", "assistant", "source", "target", "document", "body",
    }
)  # fmt: skip


class Container(StrEnum):
    """How a file holds its rows."""

    JSON_LINES = "jsonl"
    JSON_ARRAY = "json"
    CSV = "csv"
    PARQUET = "parquet"
    TEXT = "txt"


@dataclass(frozen=True)
class Layout:
    """A container; `delimiter` for CSV, `by_paragraph` for text whose rows are set apart by blank lines."""

    container: Container
    delimiter: str = ","
    by_paragraph: bool = False


def detect_layout(path: Path) -> Layout:
    """How `path` holds its rows, from its first 64 KiB.

    Raises InvalidDatasetError for empty, binary and UTF-16 files, and for objects spread over lines.
    """
    with open_source(path) as source:
        head = source.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return Layout(Container.PARQUET)
    _refuse_binary(head)
    start = head.lstrip()
    if not start:
        raise InvalidDatasetError("The file holds only blanks. Upload one with at least 2 rows.", code="empty_file")
    if start.startswith(b"{"):
        if start.split(b"\n", 1)[0].strip() == b"{":
            raise InvalidDatasetError(
                "The file holds JSON objects that are spread over several lines. Write each object on one line "
                "(JSON Lines), or all of them inside one array.",
                code="invalid_dataset",
            )
        return Layout(Container.JSON_LINES)
    if re.match(rb'\[\s*(?:[\[{"\]]|$)', start):
        return Layout(Container.JSON_ARRAY)
    text = head.decode("utf-8", "replace")
    delimiter = _detect_delimiter(text, is_whole=len(head) < _HEAD_BYTES)
    if delimiter:
        return Layout(Container.CSV, delimiter=delimiter)
    return Layout(Container.TEXT, by_paragraph=re.search(r"\S[^\S\n]*\n[^\S\n]*\r?\n\s*\S", text) is not None)


def _refuse_binary(head: bytes) -> None:
    problem = ""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        problem = "The file is UTF-16, not UTF-8. Save it with the encoding UTF-8."
    elif head.startswith(b"PK\x03\x04"):
        problem = "The file is a zip archive or a spreadsheet. Save the sheet as CSV, or unpack the archive."
    elif b"\0" in head:
        problem = "The file is binary. Upload JSON Lines, JSON, CSV, Parquet or plain text."
    if problem:
        raise InvalidDatasetError(problem, code="not_utf8" if "UTF-16" in problem else "unsupported_file")


def _detect_delimiter(text: str, *, is_whole: bool) -> str | None:
    """The delimiter under which the first rows form a table with a header, else None."""
    if not is_whole:
        text = text[: text.rfind("\n") + 1]
    for delimiter in _DELIMITERS:
        try:
            records = [r for r in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if r][:50]
        except csv.Error:
            continue
        if len(records) < 2:
            continue
        header = records[0]
        names = {cell.strip().lower() for cell in header}
        is_header = len(names) == len(header) and all(_HEADER_CELL.fullmatch(cell) for cell in header)
        is_even = all(len(record) == len(header) for record in records)
        if is_header and names & _KNOWN_COLUMNS:
            return delimiter
        if is_header and is_even and len(header) > 1 and len(records) > 2:
            return delimiter
    return None


def scan_rows(path: Path, layout: Layout | None = None) -> Iterator[tuple[int, Row | RowError]]:
    """Rows with their number (the line for JSON Lines and text), or what is wrong with that row; then goes on.

    Holds one row in memory, at most 16 MiB. Raises InvalidDatasetError where nothing after it can be read.
    """
    layout = layout or detect_layout(path)
    if layout.container is Container.PARQUET:
        yield from parquet_rows(path)
        return
    with open_source(path) as source:
        if layout.container is Container.JSON_LINES:
            yield from _json_lines(source, path)
            return
        text = io.TextIOWrapper(source, encoding="utf-8", newline="" if layout.container is Container.CSV else None)
        try:
            if layout.container is Container.JSON_ARRAY:
                yield from iterate_array(text)
            elif layout.container is Container.CSV:
                yield from _csv_rows(text, layout.delimiter)
            else:
                yield from _text_rows(text, layout.by_paragraph)
        except UnicodeDecodeError as error:
            raise find_invalid_utf8(path) or error from error
        finally:
            text.detach()  # `source` is closed by its own context


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their number. Raises InvalidDatasetError (RowError for a single row) at the first that is broken."""
    for number, row in scan_rows(path):
        if isinstance(row, RowError):
            raise row
        yield number, row


def read_examples(path: Path, data_format: DataFormat) -> Iterator[Example]:
    """Every row as an example. Raises InvalidDatasetError (RowError for a single row) at the first that is broken."""
    for number, row in read_rows(path):
        yield to_example(row, number, data_format)


def _json_lines(source: io.BufferedReader, path: Path) -> Iterator[tuple[int, Row | RowError]]:
    number = 0
    while line := source.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise InvalidDatasetError(
                f"Line {number} is longer than {MAX_ROW_BYTES:,} bytes. Put one example on each line.",
                code="row_too_large",
            )
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.isspace():
                yield number, _broken_line(line, number, path, error)
            continue
        if type(row) is not dict:
            problem = f"line {number} is a JSON {type(row).__name__}, not an object."
            yield number, RowError(number, problem, None, "Put one JSON object on each line.")
        elif is_too_deep(row, opening=line.count(b"[") + line.count(b"{")):
            problem = f"line {number} is nested deeper than {MAX_DEPTH} levels."
            yield number, RowError(number, problem, None, "Flatten it.")
        else:
            yield number, row


def _broken_line(line: bytes, number: int, path: Path, error: orjson.JSONDecodeError) -> RowError:
    """What is wrong with a line. Raises InvalidDatasetError where the file is not UTF-8 at all."""
    try:
        text = line.decode()
    except UnicodeDecodeError as decode_error:
        raise find_invalid_utf8(path) or decode_error from decode_error
    problem = json_problem(text.rstrip("\r\n"), fallback=str(error))
    return RowError(
        number, f"line {number} is not valid JSON: {problem}.", None, "Put one complete JSON object on each line."
    )


def _csv_rows(text: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[int, Row | RowError]]:
    csv.field_size_limit(MAX_ROW_BYTES)  # the default of 128 KiB is less than one long document
    reader = csv.reader(text, delimiter=delimiter)
    number = 0
    try:
        header = [cell.strip() for cell in next(reader)]
        for record in reader:
            if not record:
                continue
            number += 1
            if len(record) == len(header):
                yield number, dict(zip(header, record, strict=True))
                continue
            problem = f"line {reader.line_num} has {len(record)} fields where the header has {len(header)}."
            fix = f'Put fields that contain "{delimiter}" or line breaks in double quotes.'
            yield number, RowError(number, problem, None, fix)
    except csv.Error as error:
        raise InvalidDatasetError(
            f"The CSV cannot be read after row {number}, line {reader.line_num}: {error}. "
            "Look for a double quote that is never closed.",
        ) from error


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
