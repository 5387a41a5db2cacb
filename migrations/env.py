"""Runs the migrations on the connection that `core.db.migrate` opened; Alembic executes this file for each command."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import JSON, TypeDecorator

from migrations.schema import metadata


def render_item(kind: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
    """Write our column types as the plain ones they are in the database: a migration outlives the code it came from."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    if kind == "type" and isinstance(item, JSON):
        autogenerate.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_item=render_item,
    compare_type=True,
    transactional_ddl=True,  # SQLite too: core.db.session starts its transactions itself, so DDL is inside them
    render_as_batch=True,  # SQLite cannot alter a column in place; PostgreSQL gets the plain statements
)
with context.begin_transaction():
    context.run_migrations()
