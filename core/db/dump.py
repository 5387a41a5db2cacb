"""Taking a database out whole, as it was at one moment, and putting it back.

SQLite is copied by its own online backup. PostgreSQL's tables are streamed with COPY, in one snapshot: it needs no
client programs of the server's version, which the image does not have, and its text format is the same in all
versions. What was taken out at an earlier schema is put back at that schema, and then migrated.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from psycopg import sql
from sqlalchemy import Connection, MetaData, inspect, make_url, text
from sqlalchemy.orm import Session

from core.db.migrate import script_config, upgrade
from core.db.session import Database, open_engine
from core.errors import ConflictError
from core.scratch import scratch_directory

__all__ = ["Part", "dump", "kind_of", "load", "refuse_in_use"]

CHUNK_BYTES = 1024**2
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True)
class Part:
    """A file of a dump: SQLite's database, or the rows of one table of PostgreSQL's."""

    name: str
    columns: tuple[str, ...]  # of a table's rows
    chunks: Iterable[bytes]


def kind_of(url: str) -> str:
    """`sqlite` or `postgresql`."""
    return make_url(url).get_backend_name()


def dump(session: Session) -> Iterator[Part]:
    """The parts of the database, as the session's snapshot sees it; read each before the next."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        yield from _dump_sqlite(connection)
    else:
        for table in _tables(connection):
            columns = tuple(column.name for column in table.columns)
            yield Part(table.name, columns, _rows(connection, table.name, columns))


def refuse_in_use(url: str, *, may_replace: bool) -> None:
    """Raises ConflictError where the database has rows that may not be replaced, or other programs use it."""
    if kind_of(url) == "sqlite" and not _file_of(url).exists():
        return
    engine = open_engine(url).execution_options(tunewright_read_only=True)
    try:
        with engine.connect() as connection:
            others = _other_connections(connection)
            filled = [] if may_replace else _filled_tables(connection)
    finally:
        engine.dispose()
    if others:
        raise ConflictError(
            f"{others} other connection(s) use this database. Stop the service before restoring: API, workers and "
            "maintenance.",
            code="database_in_use",
        )
    if filled:
        raise ConflictError(
            f"The database is not empty: {', '.join(filled[:5])} have rows. Restore into an empty one, or give "
            "--replace to lose what it has.",
            code="database_not_empty",
        )


def load(
    url: str, revision: str, parts: Mapping[str, Part], finish: Callable[[Session], None], *, now: datetime
) -> Path | None:
    """Replace the database by a dump at this schema, migrate it, and `finish` it: all or nothing.

    Returns where SQLite's earlier file is kept; None where there was none. Raises what `finish` raises.
    """
    if kind_of(url) == "sqlite":
        return _load_sqlite(url, parts, finish, now)
    _load_postgresql(url, revision, parts, finish)
    return None


def _dump_sqlite(connection: Connection) -> Iterator[Part]:
    connection.execute(text("select count(*) from alembic_version"))  # opens the snapshot that the copy is made of
    source = connection.connection.driver_connection
    assert isinstance(source, sqlite3.Connection)
    with scratch_directory() as directory:
        path = directory / "copy"
        target = sqlite3.connect(path)
        try:
            source.backup(target)
            target.execute("pragma journal_mode = delete")  # one file, without a log beside it
        finally:
            target.close()
        yield Part("sqlite", (), _file_chunks(path))


def _file_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _tables(connection: Connection) -> Sequence[Any]:
    """All tables but Alembic's, each behind those that it refers to."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != _VERSION_TABLE]


def _rows(connection: Connection, table: str, columns: Sequence[str]) -> Iterator[bytes]:
    with _copy(connection, "copy {} ({}) to stdout", table, columns) as copy:
        for chunk in copy:
            yield bytes(chunk)


@contextmanager
def _copy(connection: Connection, statement: str, table: str, columns: Sequence[str]) -> Iterator[Any]:
    driver: Any = connection.connection.driver_connection
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    with driver.cursor() as cursor, cursor.copy(sql.SQL(statement).format(sql.Identifier(table), names)) as copy:
        yield copy


def _other_connections(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return 0
    query = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and backend_type = 'client backend'"
    )
    return int(connection.scalar(text(query)) or 0)


def _filled_tables(connection: Connection) -> list[str]:
    quote = connection.dialect.identifier_preparer.quote
    names = [name for name in inspect(connection).get_table_names() if name != _VERSION_TABLE]
    return [
        name
        for name in names
        if connection.scalar(text(f"select exists (select 1 from {quote(name)})"))  # noqa: S608
    ]


def _load_sqlite(url: str, parts: Mapping[str, Part], finish: Callable[[Session], None], now: datetime) -> Path | None:
    """Everything is done to a file beside the database, which takes its place when nothing can fail any more."""
    target = _file_of(url)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = target.with_name(f"{target.name}.restoring")
    made.unlink(missing_ok=True)
    try:
        with made.open("xb") as file:
            for chunk in parts["sqlite"].chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        made_url = make_url(url).set(database=str(made)).render_as_string(hide_password=False)
        upgrade(made_url)
        database = Database(made_url, publish=_sends_nothing)
        try:
            with database.transaction() as session:
                finish(session)
                session.info.pop("messages", None)
        finally:
            database.close()  # SQLite writes its log back into the file with the last connection
        kept = _put_aside(target, now)
        made.replace(target)
    finally:
        for leftover in (made, *_logs(made)):
            leftover.unlink(missing_ok=True)
    return kept


def _put_aside(target: Path, now: datetime) -> Path | None:
    if not target.exists():
        return None
    kept = target.with_name(f"{target.name}.before-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}")
    for path, beside in zip((target, *_logs(target)), (kept, *_logs(kept)), strict=True):
        if path.exists():
            path.replace(beside)
    return kept


def _logs(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def _load_postgresql(url: str, revision: str, parts: Mapping[str, Part], finish: Callable[[Session], None]) -> None:
    """One transaction: whatever fails, the database is as it was."""
    engine = open_engine(url)
    config = script_config()
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            _empty(connection)
            command.upgrade(config, revision)
            _fill(connection, parts)
            command.upgrade(config, "head")
            with Session(connection, expire_on_commit=False) as session:
                finish(session)
                session.flush()
    finally:
        engine.dispose()


def _empty(connection: Connection) -> None:
    metadata = MetaData()
    metadata.reflect(connection)
    metadata.drop_all(connection)
    functions = (
        "select p.proname from pg_proc p join pg_type t on t.oid = p.prorettype "
        "where p.pronamespace = current_schema()::regnamespace and t.typname = 'trigger'"
    )
    for (name,) in connection.execute(text(functions)).all():
        connection.execute(text(f'drop function "{name}"()'))


def _fill(connection: Connection, parts: Mapping[str, Part]) -> None:
    """Copy the rows in, past the triggers that watch new bookings: these are old, and proven as a whole behind."""
    tables = [table.name for table in _tables(connection)]
    _set_triggers(connection, tables, "disable")
    for table in tables:
        with _copy(connection, "copy {} ({}) from stdin", table, parts[table].columns) as copy:
            for chunk in parts[table].chunks:
                copy.write(chunk)
    connection.execute(text("set constraints all immediate"))  # what waits for the commit holds off changes of tables
    _set_triggers(connection, tables, "enable")


def _set_triggers(connection: Connection, tables: Sequence[str], verb: str) -> None:
    quote = connection.dialect.identifier_preparer.quote
    for table in tables:
        connection.execute(text(f"alter table {quote(table)} {verb} trigger user"))


def _file_of(url: str) -> Path:
    return Path(str(make_url(url).database))


def _sends_nothing(messages: object) -> None:
    raise AssertionError(f"a database that is being restored has nothing to send: {messages}")
