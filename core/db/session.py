"""Engine, transactions and the rule that messages leave only after the commit that made them true.

SQLite opens a write transaction with BEGIN IMMEDIATE: two writers then queue at the start, where waiting is safe,
instead of failing in the middle when both try to upgrade a read lock. Readers use a plain BEGIN and never wait (WAL).
PostgreSQL relies on row locks taken by the queries themselves.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from random import uniform
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from core.db.lines import say_collected
from core.queue.messages import Message, Publisher

BUSY_TIMEOUT_MILLISECONDS = 30_000
LONGEST_IDLE_SECONDS = 300
_RETRIED_SQLSTATES = {"40001", "40P01"}  # serialization_failure, deadlock_detected
_READ_ONLY_SQLSTATE = "25006"  # read_only_sql_transaction: a standby, or a server that someone is working on
_DISK_FULL_SQLSTATE = "53100"
_ATTEMPTS = 5

Result = TypeVar("Result")


class Database:
    """Sessions over one engine. `publish` sends the messages a committed transaction collected."""

    def __init__(self, url: str, publish: Publisher) -> None:
        self.engine = open_engine(url)
        self._publish = publish

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One write transaction: commits when the block ends, rolls back when it raises, then sends messages."""
        with Session(self.engine, expire_on_commit=False) as session:
            with session.begin():
                yield session
            say_collected(session)
            messages: list[Message] = session.info.pop("messages", [])
        if messages:
            self._publish(messages)

    def run(self, work: Callable[[Session], Result]) -> Result:
        """`work` in a transaction of its own, again after a deadlock or a serialization failure."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.transaction() as session:
                    return work(session)
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not is_transient(error):
                    raise
                time.sleep(uniform(0.01, 0.05) * 2**attempt)
        raise AssertionError("unreachable")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading only: no write lock on SQLite, rolled back at the end."""
        options = {"tunewright_read_only": True}
        with Session(self.engine.execution_options(**options), expire_on_commit=False) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """As `read`, where all queries see the database at one moment. SQLite's readers always do."""
        options: dict[str, Any] = {"tunewright_read_only": True}
        if self.engine.dialect.name == "postgresql":
            options |= {"isolation_level": "REPEATABLE READ"}
        with Session(self.engine.execution_options(**options), expire_on_commit=False) as session:
            yield session

    def ping(self) -> None:
        """Raise `OperationalError` where the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("select 1"))

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def database_now(session: Session) -> datetime:
    """Now by the database's clock: the one that leases and heartbeats of all machines are told by."""
    if session.get_bind().dialect.name == "sqlite":  # on one machine, whose clock it reads
        now = session.scalar(text("select strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')"))
        return datetime.fromisoformat(str(now))
    return cast(datetime, session.scalar(text("select clock_timestamp()"))).astimezone(UTC)


def is_read_only(session: Session) -> bool:
    """Whether PostgreSQL takes no writes: a standby, or one that someone is working on. SQLite is asked by writing."""
    if session.get_bind().dialect.name == "sqlite":
        return False
    return bool(session.scalar(text("select current_setting('transaction_read_only') = 'on'")))


def is_transient(error: DBAPIError) -> bool:
    """Whether the same transaction may well succeed when it is run again."""
    if isinstance(error, OperationalError) and "database is locked" in str(error.orig):
        return True
    return getattr(error.orig, "sqlstate", None) in _RETRIED_SQLSTATES


def is_away(error: DBAPIError) -> bool:
    """Whether the database cannot be reached, or cannot be written for now; the transaction has changed nothing."""
    return isinstance(error, OperationalError) or getattr(error.orig, "sqlstate", None) == _READ_ONLY_SQLSTATE


def is_full(error: DBAPIError) -> bool:
    """Whether the database has no room on its disk; the transaction has changed nothing."""
    if isinstance(error.orig, sqlite3.Error):
        # The second: without room for its index of the log, SQLite cannot even open the file.
        return error.orig.sqlite_errorcode in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return getattr(error.orig, "sqlstate", None) == _DISK_FULL_SQLSTATE


def open_engine(url: str) -> Engine:
    """An engine with the pragmas and transaction starts this module promises."""
    if not url.startswith("sqlite"):
        engine = create_engine(url, pool_pre_ping=True, pool_size=10, max_overflow=20)
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MILLISECONDS / 1000})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    """A process that freezes within a transaction must not hold its rows for ever."""
    with connection.cursor() as cursor:
        cursor.execute(f"set idle_in_transaction_session_timeout = '{LONGEST_IDLE_SECONDS}s'")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not start transactions of its own
    cursor = connection.cursor()
    for pragma in (f"busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}", "foreign_keys = ON", "synchronous = FULL"):
        cursor.execute(f"pragma {pragma}")
    _use_write_ahead_log(cursor)
    cursor.close()


def _use_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Two first connections to a new file may ask for this at once, and SQLite's busy timeout does not cover it."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MILLISECONDS / 1000
    while True:
        try:
            cursor.execute("pragma journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(uniform(0.005, 0.02))
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("tunewright_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
