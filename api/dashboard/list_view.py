"""A list that is searched, filtered, sorted and read page by page, with all of that in its address."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import Query

from core.paging import Page

ASCENDING_FIRST = frozenset({"name", "model", "base", "status", "loss"})  # the best, or the first of the alphabet
SearchQuery = Annotated[str, Query(max_length=100)]
OrderQuery = Annotated[Literal["asc", "desc"] | None, Query()]
AfterQuery = Annotated[str | None, Query(max_length=600)]


@dataclass(frozen=True)
class ListView:
    """What of a list is asked for. `filters` are those that differ from the list's usual ones, by parameter."""

    path: str
    sort: str
    usual_sort: str
    order: str | None = None
    after: str | None = None
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_descending(self) -> bool:
        """Whether the largest comes first."""
        return (self.order or _first_order(self.sort)) == "desc"

    @property
    def is_filtered(self) -> bool:
        """Whether there may be more than is listed."""
        return bool(self.filters)

    @property
    def sorting(self) -> dict[str, str]:
        """The parameters that keep the order."""
        order = "desc" if self.is_descending else "asc"
        kept = {} if self.sort == self.usual_sort else {"sort": self.sort}
        return kept if order == _first_order(self.sort) else {**kept, "order": order}

    @property
    def address(self) -> str:
        """The first page of the list as it is."""
        return self._address(self.sorting)

    def sorted_by(self, sort: str) -> str:
        """The list by another column; by the same one, the other way round."""
        order = None
        if sort == self.sort:
            order = "asc" if self.is_descending else "desc"
        return ListView(self.path, sort, self.usual_sort, order, filters=self.filters).address

    def behind(self, page: Page[Any]) -> str | None:
        """The page behind this one; None behind the last."""
        return self._address({**self.sorting, "after": page.next_after}) if page.next_after else None

    def _address(self, sorting: Mapping[str, str]) -> str:
        query = {**self.filters, **sorting}
        return f"{self.path}?{urlencode(query)}" if query else self.path


def filters_of(**values: str | None) -> dict[str, str]:
    """Those that are set."""
    return {name: value for name, value in values.items() if value}


def _first_order(sort: str) -> str:
    return "asc" if sort in ASCENDING_FIRST else "desc"
