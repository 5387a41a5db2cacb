"""The database of the commands that work without a running service."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from core.acting import Acting, ActorKind, acting_as
from core.db.migrate import pending
from core.db.session import Database
from core.errors import ServiceUnavailableError
from core.settings import Settings

DataDirectory = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The service's directory; TUNEWRIGHT_DATA_DIR, else var.")
]


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The database, up to date. Raises ServiceUnavailableError where it is away or its schema is of another release."""
    try:
        steps = pending(settings.resolved_database_url)
    except DBAPIError as error:
        raise ServiceUnavailableError(f"The database does not answer: {error.orig}") from None
    if steps:
        raise ServiceUnavailableError(
            f"The database lacks {len(steps)} migration(s) of this release. Run `tunewright migrate`, or start "
            "`tunewright up`, which does so by itself. For another directory, use --data DIR."
        )
    database = Database(settings.resolved_database_url, publish=_sends_nothing)
    try:
        with acting_as(Acting(ActorKind.COMMAND_LINE, name=_system_user())):
            yield database
    finally:
        database.close()


def _system_user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a container's user may have no name
        return f"uid {os.getuid()}"


def _sends_nothing(messages: object) -> None:
    raise AssertionError(f"a command that works on the database alone has nothing to send: {messages}")
