"""`tunewright hub-token`: the token with which the model hub is asked for an organization."""

from typing import Annotated

import typer
from pydantic import SecretStr
from sqlalchemy.orm import Session

from cli.database import DataDirectory, open_database
from cli.terminal import out
from core.accounts import hub_tokens
from core.accounts.models import HubToken, Organization
from core.accounts.service import ensure_owner
from core.errors import NotFoundError
from core.runtime import open_runtime
from core.settings_loading import load_settings

hub_token = typer.Typer(no_args_is_help=True)

Of = Annotated[str | None, typer.Option("--organization", help="Id of the organization; the owner's where not given.")]


@hub_token.callback()
def _hub_token() -> None:
    """Set, show and remove the token with which the model hub is asked for an organization."""


@hub_token.command("set")
def keep(
    token: Annotated[str, typer.Option(prompt=True, hide_input=True, envvar="HF_TOKEN", show_envvar=True)],
    organization: Of = None,
    data: DataDirectory = None,
) -> None:
    """Keep a token, encrypted, in place of the one before. Asks for it; the hub is asked whose it is."""
    settings = load_settings(data)
    with open_database(settings) as database:
        with database.transaction() as session:
            organization_id = _organization(session, organization)
        runtime = open_runtime(settings)
        kept = hub_tokens.set_token(runtime, organization_id, SecretStr(token))
        runtime.close()
    out.print(_line(kept))


@hub_token.command("show")
def show(organization: Of = None, data: DataDirectory = None) -> None:
    """Say which token is kept: its last characters, and since when."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        out.print(_line(hub_tokens.get_token(session, _organization(session, organization))))


@hub_token.command("remove")
def remove(organization: Of = None, data: DataDirectory = None) -> None:
    """Forget the token."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        hub_tokens.remove_token(session, _organization(session, organization))
    out.print("The token is forgotten. What is public on the hub is read as before.")


@hub_token.command("seal")
def seal(data: DataDirectory = None) -> None:
    """Encrypt every organization's token with the secret key in force, after it was changed."""
    settings = load_settings(data)
    with open_database(settings) as database, database.transaction() as session:
        sealed = hub_tokens.seal_anew(session, settings)
    out.print(f"{sealed:,} sealed with the secret key in force. TUNEWRIGHT_FORMER_SECRET_KEY is needed no more.")


def _organization(session: Session, named: str | None) -> str:
    if named is None:
        return ensure_owner(session).organization_id
    if session.get(Organization, named) is None:
        raise NotFoundError(f"No organization {named!r}. `tunewright accounts list` shows them.")
    return named


def _line(kept: HubToken) -> str:
    of = f" of {kept.hub_account}" if kept.hub_account else ", which the hub was not asked about"
    return f"The token …{kept.hint}{of}, set at {kept.set_at:%Y-%m-%d %H:%M} UTC."
