"""Tables as text: CSV and its kin, their delimiter, the names of their columns and their rows.

Whether the first row names the columns is certain where it holds a name that is known. Elsewhere it is said that it is
not, and whoever maps the columns decides: by the names in the first row, or by `column_1`, `column_2` and so on, which
makes the first row data.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.datasets.columns import listed, plain_name
from core.datasets.detection import known_names
from core.datasets.notices import NoticeCollector
from core.datasets.row_errors import RowError, UnreadableRestError
from core.datasets.sources import MAX_ROW_BYTES
from core.datasets.values import MissingWord
from core.errors import InvalidDatasetError

__all__ = ["MAX_COLUMNS", "TextTable", "detect_table", "table_rows"]

MAX_COLUMNS = 4096
_DELIMITERS = ("\t", ",", ";", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's word for its delimiter
_LONGEST_NAME = 60
_WORD = re.compile(r"[^\W\d]\w*")
_MISSING = frozenset({"nan", "NaN", "NAN", "<NA>", "NaT", "None", "NULL", "null", "#N/A"})


@dataclass(frozen=True)
class TextTable:
    """How a table is written. `first` are the cells of its first row, after `skipped_lines` lines.

    `has_header` says whether they are taken as names, `is_certain` whether that is known.
    """

    delimiter: str
    first: tuple[str, ...]
    has_header: bool = True
    is_certain: bool = True
    skipped_lines: int = 0
    is_even: bool = False  # the rows looked at have as many cells as the first

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the first row gives: made unique, and those of blank cells their number's."""
        names: dict[str, None] = {}
        counts: Counter[str] = Counter()
        for number, cell in enumerate(self.first, start=1):
            wanted = name = cell.strip() or f"column_{number}"
            while name in names:
                counts[wanted] += 1
                name = f"{wanted}_{counts[wanted] + 1}"
            names[name] = None
        return tuple(names)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names that columns have where the first row is data."""
        return tuple(f"column_{number}" for number in range(1, len(self.first) + 1))

    @property
    def other_names(self) -> tuple[str, ...]:
        """The names that columns have if the first row is not what it is taken for; none where that is certain."""
        if self.is_certain:
            return ()
        return self.numbers if self.has_header else self.names

    def read_as(self, mapped: Collection[str]) -> tuple[tuple[str, ...], bool]:
        """The names of the columns, and whether the first row gives them, where these columns are mapped."""
        if not self.is_certain and mapped:
            if all(name in self.names for name in mapped):
                return self.names, True
            if all(name in self.numbers for name in mapped):
                return self.numbers, False
        return (self.names, True) if self.has_header else (self.numbers, False)

    def tell(self, notices: NoticeCollector) -> None:
        """Say what of the table is uncertain."""
        cells = listed(self.first, 4)
        if not self.is_certain and not self.has_header:
            notices.add(
                "first_row_is_data",
                f"The first row ({cells}) reads like data, so it is kept as such and the columns are column_1 to "
                f"column_{len(self.first)}. If it names the columns, map them by these names.",
            )
        elif not self.is_certain:
            notices.add(
                "first_row_names_columns",
                f"The first row ({cells}) is taken for the names of the columns. If it is data, map the columns as "
                f"column_1 to column_{len(self.first)}, and it is kept.",
            )
        counts = Counter(cell.strip() for cell in self.first)
        doubled = sorted(name for name, count in counts.items() if name and count > 1)
        if self.has_header and doubled:
            notices.add(
                "doubled_column",
                f"Several columns are called {listed(doubled, 3)}: the first keeps the name, the next gets _2.",
            )


def detect_table(text: str, *, is_whole: bool) -> TextTable | None:
    """The table that a text begins with; None where it is none. `is_whole`: nothing follows the text."""
    forced = _SEPARATOR_LINE.match(text)
    body = text[forced.end() :] if forced else text
    if not is_whole and "\n" in body:
        body = body[: body.rfind("\n") + 1]
    best: tuple[int, TextTable] | None = None
    for delimiter in (forced[1],) if forced else _DELIMITERS:
        records = _first_records(body, delimiter, is_whole)
        if not records:
            continue
        header = records[0]
        known = sum(plain_name(cell) in known_names() for cell in header if len(cell) <= _LONGEST_NAME)
        table = TextTable(delimiter, tuple(header), skipped_lines=1 if forced else 0, is_even=_is_even(records))
        if known and (len(header) == 1) <= (len(records) > 1) and not _is_prose(records, header):
            if best is None or known > best[0]:
                best = (known, table)
        elif best is None and _is_even(records) and (forced or not _is_prose(records)):
            is_named = all(_WORD.fullmatch(cell.strip()) for cell in header) and len(set(header)) == len(header)
            best = (0, TextTable(delimiter, tuple(header), is_named, False, table.skipped_lines))
    return best[1] if best else None


def _first_records(text: str, delimiter: str, is_whole: bool) -> list[list[str]]:
    records: list[list[str]] = []
    try:
        csv.field_size_limit(MAX_ROW_BYTES)
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if record:
                records.append(record)
            if len(records) == 50:
                return records
    except csv.Error:  # in what follows: these rows tell enough
        return records
    return records if is_whole or len(records) < 2 else records[:-1]


def _is_even(records: list[list[str]]) -> bool:
    width = len(records[0])
    return len(records) > 1 and width > 1 and all(len(_trimmed(record, width)) == width for record in records)


def _is_prose(records: list[list[str]], header: list[str] | None = None) -> bool:
    """Whether blanks follow the delimiters, as in sentences; a header that does so is one if its rows are even."""
    if header is not None:
        return any(cell.startswith(" ") for cell in header[1:]) and not _is_even(records)
    return all(cell.startswith(" ") for record in records for cell in record[1:] if cell)


def _trimmed(record: list[str], width: int) -> list[str]:
    """The record without blank cells beyond the header's width: a delimiter at the end of the line."""
    while len(record) > width and not record[-1].strip():
        record = record[:-1]
    return record


class _Lines:
    """The lines of a text, none of whose records is longer than a row may be."""

    def __init__(self, text: io.TextIOBase, delimiter: str) -> None:
        self._text, self._delimiter = text, delimiter
        self.record_size = self.record = self.line = 0
        self.record_line = 1  # on which the record begins

    def next_record(self) -> None:
        self.record += 1
        self.start()

    def start(self) -> None:
        """Another record begins on the next line."""
        self.record_size, self.record_line = 0, self.line + 1

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_ROW_BYTES + 1):
            self.line += 1
            self.record_size += len(line)
            if self.record_size > MAX_ROW_BYTES:
                raise InvalidDatasetError(
                    f"Row {self.record + 1} of the table, from line {self.record_line}, is longer than "
                    f"{MAX_ROW_BYTES:,} characters. "
                    "Look for a double quote that is never closed.",
                    code="row_too_large",
                )
            cells = line.count(self._delimiter) if len(line) > MAX_COLUMNS else 0
            if cells > max(MAX_COLUMNS, len(line) // 4):
                raise InvalidDatasetError(
                    f"Row {self.record + 1} of the table has {cells:,} cells; {MAX_COLUMNS:,} are the most.",
                    code="row_too_large",
                )
            yield line


def table_rows(
    text: io.TextIOBase, table: TextTable, mapped: Collection[str] = ()
) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    """The rows of a table from 1, or what is wrong with that row. `mapped`: the columns that are asked for.

    Raises InvalidDatasetError for a row above 16 MiB and for more columns than there may be.
    """
    csv.field_size_limit(MAX_ROW_BYTES)  # the default of 128 KiB is less than one long document
    for _ in range(table.skipped_lines):
        text.readline()
    names, has_header = table.read_as(mapped)
    if len(names) > MAX_COLUMNS:
        raise InvalidDatasetError(
            f"The table has {len(names):,} columns; {MAX_COLUMNS:,} are the most.", code="row_too_large"
        )
    lines = _Lines(text, table.delimiter)
    reader = csv.reader(iter(lines), delimiter=table.delimiter, strict=True)
    is_first = has_header
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            began = lines.record_line
            lines.next_record()
            yield lines.record, _broken(lines.record, began, reader.line_num, str(error))
            continue
        if not record:
            continue
        if is_first:
            is_first = False
            lines.start()
            continue
        lines.next_record()
        yield lines.record, _row(names, record, lines.record, reader.line_num, table.delimiter)


def _row(
    names: tuple[str, ...], record: list[str], number: int, line: int, delimiter: str
) -> Mapping[str, Any] | RowError:
    record = _trimmed(record, len(names)) if len(record) > len(names) else record
    if len(record) == len(names):
        cells = [MissingWord(cell) if cell in _MISSING else cell for cell in record]
        return dict(zip(names, cells, strict=True))
    problem = f"line {line} has {len(record)} fields where the first row has {len(names)}."
    fix = f'Put fields that contain "{delimiter}" or line breaks in double quotes.'
    return RowError(number, problem, None, fix)


def _broken(number: int, began: int, line: int, problem: str) -> RowError:
    if "unexpected end of data" in problem or "field larger" in problem:
        return UnreadableRestError(
            number, f"a double quote in the row from line {began} is never closed.", None, "Close it."
        )
    fix = "Write a double quote inside a quoted field twice."
    return RowError(number, f"line {line} cannot be read as a table: {problem}.", None, fix)
