"""Databases with this release's schema: copies of one that was migrated, as migrating each anew takes a second."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine, text

from core.db.migrate import upgrade


def migrated_sqlite(path: Path) -> str:
    """The URL of a migrated SQLite database at `path`, where there was none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_migrated_file())
    return f"sqlite:///{path}"


@cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory(prefix="tunewright-schema-") as directory:
        path = Path(directory) / "schema.db"
        upgrade(f"sqlite:///{path}")
        return path.read_bytes()


@contextmanager
def new_postgres(server: str, template: str = "template1") -> Iterator[str]:
    """The URL of a database of its own on the server, a copy of the template, dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {name} template {template}"))
    yield server.replace("/postgres?", f"/{name}?", 1)
    with engine.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    engine.dispose()
