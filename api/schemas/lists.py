"""Lists: `limit` objects from just behind `after`, and whether there are more."""

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from pydantic import Field

from api.schemas.base import IdentifiedBody, ResponseBody
from core.paging import Page

Item = TypeVar("Item", bound=IdentifiedBody)
Row = TypeVar("Row")


class ListObject(ResponseBody, Generic[Item]):
    """A page of a list. Ask for the next with `after` set to `last_id`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = Field(description="Whether there are objects behind `last_id`.")
    first_id: str | None = Field(description="Id of the first object of this page; null for an empty one.")
    last_id: str | None = Field(description="Id of the last object of this page: the next page's `after`.")

    @classmethod
    def of(cls, items: Sequence[Item], *, has_more: bool = False) -> "ListObject[Item]":
        """A list object around `items`."""
        return cls(
            data=list(items),
            has_more=has_more,
            first_id=items[0].id if items else None,
            last_id=items[-1].id if items else None,
        )


def list_of(page: Page[Row], show: Callable[[Row], Item]) -> ListObject[Item]:
    """The list object of a page whose rows `show` turns into wire objects."""
    return ListObject.of([show(row) for row in page.rows], has_more=page.has_more)
