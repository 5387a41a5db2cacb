"""What is worth knowing about a data set without making it unusable."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Notice", "NoticeCollector", "combined"]


@dataclass(frozen=True)
class Notice:
    """One thing worth knowing about a file. `rows` counts the rows it holds for, 0 where it is about the whole file.

    `code` is stable and in snake_case, `message` a sentence, `first_row` the number of the first such row.
    """

    code: str
    message: str
    rows: int = 0
    first_row: int | None = None

    def __str__(self) -> str:
        if not self.rows:
            return self.message
        if self.rows == 1:
            return f"Row {self.first_row}: {self.message}"
        return f"{self.rows:,} rows (first: row {self.first_row}): {self.message}"


class NoticeCollector:
    """Counts what is noticed while rows pass by: one notice for each code, in the order in which they came up."""

    def __init__(self) -> None:
        self._found: dict[str, Notice] = {}

    def add(self, code: str, message: str, row: int | None = None) -> None:
        """Note something about a row, or about the whole file. Of several messages of one code the first is kept."""
        known = self._found.get(code)
        if known is None:
            self._found[code] = Notice(code, message, rows=0 if row is None else 1, first_row=row)
        elif row is not None:
            self._found[code] = Notice(code, known.message, known.rows + 1, known.first_row)

    def notices(self) -> tuple[Notice, ...]:
        """All that was noticed."""
        return tuple(self._found.values())


def combined(*groups: Iterable[Notice]) -> tuple[Notice, ...]:
    """The notices of several looks at one file. What a later look finds stands for what an earlier one found of it."""
    found: list[Notice] = []
    for group in groups:
        newer = tuple(group)
        codes = {notice.code for notice in newer}
        found = [notice for notice in found if notice.code not in codes] + list(newer)
    return tuple(found)
