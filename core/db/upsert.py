"""The one statement that the two databases spell in modules of their own."""

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.db.base import Base


def insert_or_ignore(session: Session, table: type[Base], **values: Any) -> bool:
    """Insert a row unless one with the same key stands there already; whether it was inserted.

    Where another transaction is inserting the same key, PostgreSQL waits for it to end first.
    """
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(**values).on_conflict_do_nothing().returning(table.__mapper__.primary_key[0])
    return session.execute(statement).first() is not None
