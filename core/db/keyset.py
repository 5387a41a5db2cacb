"""Lists sorted by any column, page by page: each page goes on behind a value and an id, which its address carries.

An offset would repeat or skip rows when others come and go, and cost more the further one reads.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, func, or_
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.errors import InvalidRequestError
from core.paging import Page

Row = TypeVar("Row")

_SEPARATOR = "~"  # between value and id; in no id
_LARGEST_INTEGER = 2**63 - 1
_MISSING = 1e300  # sorts in place of a number that is not there, behind all others in either direction


@dataclass(frozen=True)
class Order:
    """What a list is sorted by; rows that are equal in it are sorted by id, in the same direction."""

    by: ColumnElement[Any] | InstrumentedAttribute[Any]
    is_descending: bool


def known_first(column: ColumnElement[Any] | InstrumentedAttribute[Any], *, is_descending: bool) -> ColumnElement[Any]:
    """A column of numbers above zero to sort by, rows without a number last."""
    return func.coalesce(column, -_MISSING if is_descending else _MISSING)


def sorted_page(
    session: Session,
    query: Select[Row],
    row_id: InstrumentedAttribute[str],
    order: Order,
    *,
    after: str | None,
    limit: int,
) -> Page[Row]:
    """The page of `query`'s rows behind `after`, which an earlier page gave as its `next_after`.

    Raises InvalidRequestError for an `after` that no page of this order gave.
    """
    if after is not None:
        query = query.where(_behind(row_id, order, after))
    keys = (order.by, row_id)
    query = query.order_by(*(key.desc() if order.is_descending else key.asc() for key in keys))
    columns = [key.label(f"keyset_{place}") for place, key in enumerate(keys)]
    found = session.execute(query.add_columns(*columns).limit(limit + 1)).all()
    shown = found[:limit]
    next_after = _place(shown[-1][1], shown[-1][2]) if len(found) > limit else None
    return Page([row[0] for row in shown], has_more=next_after is not None, next_after=next_after)


def _behind(row_id: InstrumentedAttribute[str], order: Order, after: str) -> ColumnElement[bool]:
    text, separator, last_id = after.rpartition(_SEPARATOR)
    kind = order.by.type.python_type
    value = _value(kind, text)
    if not separator or value is None:
        raise InvalidRequestError(f"{after!r} is not a place in this list. Begin at its first page.", param="after")
    if order.is_descending:
        return or_(order.by < value, and_(order.by == value, row_id < last_id))
    return or_(order.by > value, and_(order.by == value, row_id > last_id))


def _value(kind: type[Any], text: str) -> Any:
    """The value that a page's address carries; None for what no page gave, a number too large for a column too."""
    try:
        value = datetime.fromisoformat(text) if kind is datetime else kind(text)
    except ValueError:
        return None
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else None
    if isinstance(value, int | float):
        return value if abs(value) <= (_LARGEST_INTEGER if kind is int else _MISSING) else None
    return value


def _place(value: object, row_id: str) -> str:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return f"{text}{_SEPARATOR}{row_id}"
