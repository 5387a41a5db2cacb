"""Keyset pages: `limit` rows from just behind the last id, and whether there are more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page of a list. `next_after`: where the next begins, of a list that is not sorted by id."""

    rows: Sequence[Row]
    has_more: bool
    next_after: str | None = None

    @classmethod
    def of(cls, rows: Sequence[Row], limit: int) -> "Page[Row]":
        """The page within `rows`, of which one more than `limit` was asked for."""
        return cls(rows[:limit], len(rows) > limit)
