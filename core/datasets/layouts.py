"""How a file holds its rows: JSON Lines, a JSON array, a table as text, Parquet or plain text, told from content."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.datasets.charsets import UTF_8, WESTERN, detect_charset
from core.datasets.columns import listed
from core.datasets.conversations import is_turn
from core.datasets.numbers import load_json
from core.datasets.sources import open_source
from core.datasets.text_tables import TextTable, detect_table
from core.errors import InvalidDatasetError

__all__ = ["Container", "Layout", "detect_layout"]

_HEAD_BYTES = 64 * 1024
_LINES_LOOKED_AT = 20
_OLD_MAC = re.compile(rb"\}[ \t]*\r\s*\{")
_ARRAY = re.compile(rb'\[\s*(?:[\[{"\]]|$)')
_BELOW = (",", ";", "\t")  # of tables below a heading; Markdown has others, which are a text's own
_PARAGRAPH = re.compile(r"\S[^\S\n]*\n[^\S\n]*\r?\n\s*\S")
_FORMATS = "Upload JSON Lines, JSON, CSV, Parquet or plain text."
_FOREIGN = {
    b"PK\x03\x04": "The file is a zip archive or a spreadsheet. Save the sheet as CSV, or unpack the archive.",
    b"\xd0\xcf\x11\xe0": "The file is a spreadsheet or document of an old Office. Save the sheet as CSV.",
    b"%PDF": f"The file is a PDF document. {_FORMATS}",
    b"ARROW1": f"The file is in Arrow's own format. {_FORMATS}",
    b"BZh": "The file is packed with bzip2. Pack it with gzip or Zstandard, or upload it as it is.",
    b"\xfd7zXZ": "The file is packed with xz. Pack it with gzip or Zstandard, or upload it as it is.",
    b"SQLite format 3": f"The file is an SQLite database. {_FORMATS}",
    b"\x1f\x8b": f"The file is packed twice. Unpack it once. {_FORMATS}",
    b"\x28\xb5\x2f\xfd": f"The file is packed twice. Unpack it once. {_FORMATS}",
}


class Container(StrEnum):
    """How a file holds its rows."""

    JSON_LINES = "jsonl"
    JSON_ARRAY = "json"
    CSV = "csv"
    PARQUET = "parquet"
    TEXT = "txt"


@dataclass(frozen=True)
class Layout:
    """A container; `table` for CSV, `by_paragraph` for text whose rows are set apart by blank lines.

    JSON Lines are read as UTF-8 until a line is not, so that a large file is not read twice.
    """

    container: Container
    table: TextTable | None = None
    by_paragraph: bool = False
    encoding: str = UTF_8


def detect_layout(path: Path) -> Layout:
    """How `path` holds its rows, from its first 64 KiB.

    Raises InvalidDatasetError for empty, binary and undecodable files, and for objects spread over lines.
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
        if b"\n" not in head and _OLD_MAC.search(head):
            raise InvalidDatasetError(
                "The lines of the file end in carriage returns alone, as on old Macs. Save it with line feeds.",
                code="invalid_dataset",
            )
        if start.split(b"\n", 1)[0].strip() == b"{":
            raise InvalidDatasetError(
                "The file holds JSON objects that are spread over several lines. Write each object on one line "
                "(JSON Lines), or all of them inside one array.",
                code="invalid_dataset",
            )
        return Layout(Container.JSON_LINES)
    if _ARRAY.match(start):
        if _is_lines_of_conversations(start):
            return Layout(Container.JSON_LINES)
        return Layout(Container.JSON_ARRAY, encoding=detect_charset(path))
    encoding = detect_charset(path)
    text = head.decode(encoding, "replace" if encoding == UTF_8 else "strict")
    table = detect_table(text, is_whole=len(head) < _HEAD_BYTES)
    if table is not None and table.delimiter == "|":
        _refuse_markdown(text)
    if table is not None:
        return Layout(Container.CSV, table=table, encoding=encoding)
    _refuse_commented_json(text)
    _refuse_table_below(text, is_whole=len(head) < _HEAD_BYTES)
    return Layout(Container.TEXT, by_paragraph=_PARAGRAPH.search(text) is not None, encoding=encoding)


def _refuse_binary(head: bytes) -> None:
    problem = next((problem for magic, problem in _FOREIGN.items() if head.startswith(magic)), "")
    if not problem and b"\0" in head:
        problem = (
            f"The file holds a zero byte at offset {head.index(bytes(1)):,}, so it is binary, or text in an encoding "
            f"that is not known. {_FORMATS} Save text as UTF-8."
        )
    if problem:
        raise InvalidDatasetError(problem, code="unsupported_file")


def _refuse_commented_json(text: str) -> None:
    """Raise InvalidDatasetError for JSON below or between lines that are none, which would be trained as text."""
    for number, line in enumerate(text.split("\n")[:_LINES_LOOKED_AT], 1):
        stripped = line.strip().rstrip(",;")
        if not stripped.startswith("{") or not stripped.endswith("}"):
            continue
        try:
            row = load_json(stripped)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row:
            raise InvalidDatasetError(
                f"Line {number} is a JSON object, and the file does not begin with one. Take out the lines that are no "
                "JSON (comments, headings, code around them) and leave one object on each line.",
                code="invalid_dataset",
            )


def _refuse_markdown(text: str) -> None:
    """Raise InvalidDatasetError for a table of Markdown, whose line below the names would be a row."""
    line = text.split("\n", 2)[1] if "\n" in text else ""
    if "---" in line and not line.strip("|-: \r"):
        raise InvalidDatasetError("The file is a table in Markdown. Save it as CSV.", code="unsupported_file")


def _refuse_table_below(text: str, *, is_whole: bool) -> None:
    """Raise InvalidDatasetError for a table below lines that are none, which would be trained as text."""
    for number in range(2, _LINES_LOOKED_AT):
        _, _, text = text.partition("\n")
        first_line = text.partition("\n")[0]
        table = detect_table(text, is_whole=is_whole) if first_line.strip() else None
        if table is not None and table.is_certain and table.is_even and table.delimiter in _BELOW and table.first[1:]:
            raise InvalidDatasetError(
                f"Line {number} names the columns of a table ({listed(table.first, 4)}), and the file does not begin "
                "with it. Take out the lines above it.",
                code="invalid_dataset",
            )


def _is_lines_of_conversations(start: bytes) -> bool:
    """Whether the first line is a list of messages or texts and is not all there is."""
    line, _, rest = start.partition(b"\n")
    if not rest.strip():
        return False
    try:
        first = load_json(line.decode(WESTERN, "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(first, list) and bool(first) and (is_turn(first[0]) or not isinstance(first[0], dict))
