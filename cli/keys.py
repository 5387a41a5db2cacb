"""`tunewright keys` and `tunewright link`: how the owner of an installation gets in."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.database import DataDirectory, open_database
from cli.service_files import running_service
from cli.terminal import JsonOption, err, out, print_list, table_of
from core.accounts.models import ApiKey, Scope
from core.accounts.service import (
    create_api_key,
    create_sign_in_link,
    ensure_owner,
    list_api_keys,
    revoke_api_key,
    sign_in_url,
)
from core.db.base import utc_now
from core.errors import ConflictError, NotFoundError, ServiceUnavailableError
from core.settings_loading import load_settings

keys = typer.Typer(no_args_is_help=True)


@keys.callback()
def _keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
def create(
    name: Annotated[str, typer.Option(help="What the key is for; lists show it.")] = "Command line",
    scope: Annotated[Scope, typer.Option(help="What it may do; each includes the one before.")] = Scope.WRITE,
    expires: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last moment, in UTC.")] = None,
    data: DataDirectory = None,
) -> None:
    """Make an API key of the owner and print it, alone, on standard output. It is never shown again."""
    expires_at = expires.replace(tzinfo=UTC) if expires else None
    with open_database(load_settings(data)) as database, database.transaction() as session:
        secret = create_api_key(session, ensure_owner(session), name, scope=scope, expires_at=expires_at).secret
    typer.echo(secret)


@keys.command("list")
def show(as_json: JsonOption = False, data: DataDirectory = None) -> None:
    """List the owner's API keys by their prefix."""
    table, rows = table_of("Key", "Prefix", "Name", "Scope", "Last used", "State"), []
    with open_database(load_settings(data)) as database, database.transaction() as session:
        for key in list_api_keys(session, ensure_owner(session).organization_id):
            rows.append(
                {
                    "id": key.id,
                    "prefix": key.prefix,
                    "name": key.name,
                    "scope": key.scope,
                    "last_used_at": key.last_used_at,
                    "expires_at": key.expires_at,
                    "revoked_at": key.revoked_at,
                }
            )
            table.add_row(
                key.id,
                f"{key.prefix}…",
                key.name,
                key.scope,
                "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}",
                _state(key),
            )
    print_list(table, rows, as_json)


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key or its first characters, as the list shows either.")],
    data: DataDirectory = None,
) -> None:
    """Make an API key of the owner unusable from now on."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        organization = ensure_owner(session).organization_id
        found = _key(list_api_keys(session, organization), key)
        revoke_api_key(session, organization, found.id)
        out.print(f"{found.prefix}… ({found.name}) is revoked.")


def _key(known: Sequence[ApiKey], text: str) -> ApiKey:
    """The one key that the text means. Raises NotFoundError and, where several begin so, ConflictError."""
    start = text.rstrip("…")
    meant = [key for key in known if key.id == start]
    if not meant and start:
        live = (key for key in known if key.revoked_at is None)
        meant = [key for key in live if key.prefix.startswith(start) or start.startswith(key.prefix)]
    if not meant:
        raise NotFoundError(f"No key is or begins with {text!r}. `tunewright keys list` shows them.")
    if len(meant) > 1:
        names = ", ".join(f"{key.prefix}… ({key.name})" for key in meant)
        raise ConflictError(f"{len(meant)} keys begin with {text!r}: {names}. Give more of it, or the id.")
    return meant[0]


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "works"
    return ("expired " if key.expires_at <= utc_now() else "works until ") + f"{key.expires_at:%Y-%m-%d}"


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
