"""Columns that hold something and of which nothing gets into an example."""

from collections.abc import Iterator, Mapping
from typing import Any

from core.datasets.columns import column_of, shortened
from core.datasets.examples import DataFormat
from core.datasets.formats import to_example
from core.datasets.notices import Notice
from core.datasets.row_errors import RowError

__all__ = ["COLUMN_NOT_READ", "UnreadColumns"]

COLUMN_NOT_READ = "column_not_read"
_MOST_SHAPES = 2000
_MOST_COLUMNS = 100


class UnreadColumns:
    """Counts them while rows of a known format pass by.

    A column is unread where the example stays the same without it and with something else in it. Rows with values of
    the same types in the same columns are read alike, so that is tried once for each such shape.
    """

    def __init__(self, data_format: DataFormat) -> None:
        self._format = data_format
        self._by_shape: dict[object, tuple[str, ...]] = {}
        self._found: dict[str, tuple[int, int]] = {}  # rows, and the first of them

    def take(self, row: Mapping[str, Any], number: int) -> None:
        """Look at a row that can be read."""
        if len(row) < 2:
            return
        shape = tuple([(name, type(value), bool(value)) for name, value in row.items()])
        unread = self._by_shape.get(shape)
        if unread is None:
            if len(self._by_shape) == _MOST_SHAPES:
                return
            unread = self._by_shape[shape] = tuple(self._unread(row, number))
        for name in unread:
            rows, first = self._found.get(name, (0, number))
            self._found[name] = rows + 1, first

    def notices(self) -> tuple[Notice, ...]:
        """One for each column, in the order met."""
        return tuple(
            Notice(COLUMN_NOT_READ, f"Nothing of the column {shortened(name)} is used.", rows, first)
            for name, (rows, first) in list(self._found.items())[:_MOST_COLUMNS]
        )

    def _unread(self, row: Mapping[str, Any], number: int) -> Iterator[str]:
        example = to_example(row, number, self._format)
        label = column_of(row, self._format.columns, "label")
        for name, value in row.items():
            if value in (None, "", [], {}) or (name == label and isinstance(value, bool)):
                continue
            without = {other: held for other, held in row.items() if other != name}
            try:
                is_same = to_example(without, number, self._format) == example
                is_unread = is_same and to_example({**row, name: _other(value)}, number, self._format) == example
            except RowError:
                continue
            if is_unread:
                yield name


def _other(value: object) -> object:
    """A value of the same type that says something else."""
    if isinstance(value, str):
        return f"{value} and more"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [value] if isinstance(value, list) else {"other": value}
