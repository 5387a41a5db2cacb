"""`tunewright keys` and `tunewright link`: how the owner of an installation gets in."""

from typing import Annotated

import typer

from cli.database import DataDirectory, load_settings, open_database
from cli.service_files import running_service
from cli.sign_in import sign_in_url
from cli.terminal import err, out
from core.accounts.service import create_api_key, create_sign_in_link, ensure_owner
from core.errors import ServiceUnavailableError

keys = typer.Typer(no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Make API keys."""


@keys.command("create")
def create(
    name: Annotated[str, typer.Option(help="What the key is for; lists show it.")] = "Command line",
    data: DataDirectory = None,
) -> None:
    """Make an API key of the owner and print it, alone, on standard output. It is never shown again."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        secret = create_api_key(session, ensure_owner(session), name).secret
    typer.echo(secret)


def link(
    data: DataDirectory = None,
    base_url: Annotated[str | None, typer.Option(help="Where browsers reach the service.")] = None,
) -> None:
    """Print a link that signs the owner in, once."""
    settings = load_settings(data)
    service = running_service(settings.data_dir)
    url = base_url or settings.public_url or (service.url if service else None)
    if url is None:
        raise ServiceUnavailableError(
            f"No service runs on {settings.data_dir}. Start it with `tunewright up`, or say where one is with "
            "--base-url."
        )
    with open_database(settings) as database, database.transaction() as session:
        token = create_sign_in_link(session, ensure_owner(session), settings.sign_in_link_seconds)
    out.print(sign_in_url(url, token), soft_wrap=True)
    err.print(f"It works once, within {settings.sign_in_link_seconds // 60} minutes.")
