"""Rows that one process at a time works on: `claimed_until` says for how long nobody else may."""

from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, or_, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from core.db.base import Base, Id

__all__ = ["Claimable", "claim", "extend", "is_free"]


class Claimable(Base):
    """A table whose rows are claimed."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(Id, primary_key=True, sort_order=-1)
    claimed_until: Mapped[datetime | None]  # who works on it has it until then


def is_free(table: type[Claimable], now: datetime) -> ColumnElement[bool]:
    """Whether nobody works on the row."""
    return or_(table.claimed_until.is_(None), table.claimed_until <= now)


def claim(
    session: Session,
    table: type[Claimable],
    row_id: str,
    now: datetime,
    until: datetime,
    *conditions: ColumnElement[bool],
    **values: Any,
) -> bool:
    """Take a row that is free and meets the conditions, with these changes; False where another has it."""
    taken = session.execute(
        update(table)
        .where(table.id == row_id, is_free(table, now), *conditions)
        .values(claimed_until=until, **values)
        .execution_options(synchronize_session=False)
    )
    return cast(CursorResult[Any], taken).rowcount == 1


def extend(session: Session, table: type[Claimable], row_id: str, until: datetime) -> None:
    """Keep a claimed row for longer."""
    session.execute(
        update(table).where(table.id == row_id).values(claimed_until=until).execution_options(synchronize_session=False)
    )
