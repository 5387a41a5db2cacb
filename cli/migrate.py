"""`tunewright migrate`."""

from typing import Annotated

import typer
from sqlalchemy.exc import DBAPIError

from cli.database import DataDirectory
from cli.terminal import out
from core.db.migrate import pending, upgrade
from core.errors import ServiceUnavailableError
from core.own_process import keep_private
from core.settings_loading import load_settings


def migrate(
    data: DataDirectory = None,
    check: Annotated[bool, typer.Option("--check", help="Only look; exit with 1 where a migration is due.")] = False,
) -> None:
    """Bring the database to the schema of this release. Safe to run twice, and from several machines at once."""
    settings = load_settings(data)
    keep_private(settings.data_dir)
    url = settings.resolved_database_url
    try:
        steps = pending(url) if check else upgrade(url)
    except DBAPIError as error:
        raise ServiceUnavailableError(f"The database could not be migrated: {error.orig}") from None
    if check and steps:
        out.print(f"Due: {', '.join(steps)}")
        raise typer.Exit(1)
    out.print(f"Applied: {', '.join(steps)}" if steps else "The database is up to date.")
