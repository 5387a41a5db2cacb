"""Bringing a database to the schema of this release, with Alembic's own API: there is no alembic.ini to find.

The migrations live in the package `migrations`, which is installed beside this one, so a wheel can migrate as well as
a checkout. All steps of one upgrade are one transaction on both databases: a failing step leaves the schema as it was.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url, text

from core.db.session import Database, open_engine

__all__ = ["current_revision", "knows", "migrating", "pending", "schema_problem", "script_config", "upgrade"]

_LOCK_KEY = 0x74756E65  # any number that nothing else in the database locks


def script_config() -> Config:
    """Alembic's configuration: where the migrations of this installation are."""
    spec = find_spec("migrations")
    assert spec is not None, "the package `migrations` is installed with the service"
    assert spec.origin is not None, "`migrations` is an ordinary package"
    config = Config()
    # ConfigParser would read a percent sign in the path as the start of an interpolation.
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    return config


def upgrade(url: str) -> tuple[str, ...]:
    """Apply every pending migration and return their revisions, oldest first.

    Two processes may call this at once: one waits for the other and finds nothing left to do. The folder of an SQLite
    file is made. Raises sqlalchemy.exc.OperationalError where the database does not answer.
    """
    _make_folder(url)
    config = script_config()
    with migrating(url) as connection:
        revisions = _pending(connection, config)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return revisions


@contextmanager
def migrating(url: str) -> Iterator[Connection]:
    """A transaction for changes of the schema, one at a time.

    SQLite changes a column by building its table anew, which drops rows that others refer to: so references are not
    enforced meanwhile, and looked at before the commit.
    """
    engine = open_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _let_tables_be_rebuilt)
    try:
        with engine.begin() as connection:
            _take_turns(connection)
            yield connection
            _check_references(connection)
    finally:
        engine.dispose()


def pending(url: str) -> tuple[str, ...]:
    """Revisions that `upgrade` would apply, oldest first; empty where the schema is up to date."""
    _make_folder(url)
    engine = open_engine(url).execution_options(tunewright_read_only=True)
    try:
        with engine.connect() as connection:
            return _pending(connection, script_config())
    finally:
        engine.dispose()


def schema_problem(database: Database) -> str | None:
    """Why this release cannot work on the database's schema; None where it is this release's own.

    Raises sqlalchemy.exc.DBAPIError where the database does not answer.
    """
    with database.read() as session:
        applied = set(MigrationContext.configure(session.connection()).get_current_heads())
    if applied == _own_heads():
        return None
    if applied <= _known_revisions():
        return "the database lacks migrations of this release (run `tunewright migrate`)"
    return "the database's schema is of a newer release than this process"


def current_revision(connection: Connection) -> str:
    """The revision of the database's schema, which has one."""
    (revision,) = MigrationContext.configure(connection).get_current_heads()
    return revision


def knows(revision: str) -> bool:
    """Whether this release has the revision: a newer release's it has not."""
    return revision in _known_revisions()


@cache
def _own_heads() -> set[str]:
    return set(ScriptDirectory.from_config(script_config()).get_heads())


@cache
def _known_revisions() -> set[str]:
    return {step.revision for step in ScriptDirectory.from_config(script_config()).walk_revisions()}


def _pending(connection: Connection, config: Config) -> tuple[str, ...]:
    applied = MigrationContext.configure(connection).get_current_heads()
    steps = ScriptDirectory.from_config(config).iterate_revisions("heads", applied or "base")
    return tuple(reversed([step.revision for step in steps]))


def _take_turns(connection: Connection) -> None:
    """Hold off other upgrades until this transaction ends. On SQLite, BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def _let_tables_be_rebuilt(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("pragma foreign_keys = OFF")


def _check_references(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        lost = connection.execute(text("pragma foreign_key_check")).all()
        assert not lost, f"the migration left {len(lost)} rows that refer to none, in {lost[0][0]} first"


def _make_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
