"""`tunewright accounts`: accounts made by hand, and the limits of their organizations."""

from typing import Annotated

import typer
from sqlalchemy.orm import Session

from cli.database import DataDirectory, open_database
from cli.service_files import running_service
from cli.terminal import JsonOption, out, print_list, table_of
from core.accounts import queries
from core.accounts.limits import limits_of, set_limits
from core.accounts.models import User
from core.accounts.passwords import Registration, register
from core.accounts.service import create_sign_in_link, disable_user, enable_user, ensure_owner, sign_in_url
from core.errors import NotFoundError
from core.runtime import open_runtime
from core.settings_loading import load_settings

accounts = typer.Typer(no_args_is_help=True)
OwnLimit = Annotated[int | None, typer.Option(min=0, help="Of its own; the service's where not given.")]


@accounts.command("create")
def create(
    email: Annotated[str, typer.Argument(help="The e-mail address to sign in with.")],
    name: Annotated[str, typer.Option(help="Of the person and their organization.")],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, envvar="TUNEWRIGHT_PASSWORD")],
    data: DataDirectory = None,
) -> None:
    """Make an account, also where signing up is closed. Asks for the password."""
    settings = load_settings(data)
    with open_database(settings):
        runtime = open_runtime(settings)
        user_id = register(runtime, Registration(email, password, name))
        runtime.close()
    out.print(f"{user_id} can sign in as {email.strip().lower()}.")


@accounts.command("list")
def show(as_json: JsonOption = False, data: DataDirectory = None) -> None:
    """List the accounts and the limits of their organizations."""
    table, rows = table_of("Organization", "Name", "Sign-in", "Limits"), []
    settings = load_settings(data)
    with open_database(settings) as database, database.read() as session:
        for user, organization in queries.users(session):
            limits = limits_of(session, settings, organization.id)
            rows.append(
                {
                    "organization": organization.id,
                    "name": organization.name,
                    "user": user.id,
                    "email": user.email,
                    "is_admin": user.is_admin,
                    "disabled_at": user.disabled_at,
                    "running_jobs": limits.running_jobs,
                    "queued_jobs": limits.queued_jobs,
                    "storage_bytes": limits.storage_bytes,
                    "upload_bytes": limits.upload_bytes,
                }
            )
            table.add_row(
                organization.id,
                organization.name,
                (user.email or "by link") + (", disabled" if user.disabled_at else ""),
                f"{limits.running_jobs:,} running, {limits.queued_jobs:,} queued, {limits.storage_bytes:,} bytes, "
                f"{limits.upload_bytes:,} an upload",
            )
    print_list(table, rows, as_json)


@accounts.command("link")
def link(
    email: Annotated[str, typer.Argument(help="The e-mail address of the account.")], data: DataDirectory = None
) -> None:
    """Print a one-time sign-in link for someone who has lost their password or locked themselves out."""
    settings = load_settings(data)
    with open_database(settings) as database, database.transaction() as session:
        token = create_sign_in_link(session, _user(session, email), settings.sign_in_link_seconds)
    service = running_service(settings.data_dir)
    out.print(sign_in_url(settings.public_url or (service.url if service else ""), token), soft_wrap=True)


@accounts.command("disable")
def disable(
    email: Annotated[str, typer.Argument(help="The e-mail address of the account.")], data: DataDirectory = None
) -> None:
    """Let nobody sign in to an account, nor use a key of its; what it owns stays. `enable` undoes it."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        name = disable_user(session, _user(session, email).id, by=ensure_owner(session).id).name
    out.print(f"{name} is disabled and signed out.")


@accounts.command("enable")
def enable(
    email: Annotated[str, typer.Argument(help="The e-mail address of the account.")], data: DataDirectory = None
) -> None:
    """Let someone in again."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        name = enable_user(session, _user(session, email).id).name
    out.print(f"{name} can sign in again.")


@accounts.command("limit")
def limit(
    organization: Annotated[str, typer.Argument(help="Id of the organization, as the list shows it.")],
    running_jobs: OwnLimit = None,
    queued_jobs: OwnLimit = None,
    storage_bytes: OwnLimit = None,
    upload_bytes: OwnLimit = None,
    data: DataDirectory = None,
) -> None:
    """Give an organization limits of its own. Those not given go back to the service's."""
    changes = {
        "running_jobs": running_jobs,
        "queued_jobs": queued_jobs,
        "storage_bytes": storage_bytes,
        "upload_bytes": upload_bytes,
    }
    with open_database(load_settings(data)) as database:
        name = database.run(lambda session: set_limits(session, organization, changes)).name
    own = ", ".join(f"{key} {value:,}" for key, value in changes.items() if value is not None)
    out.print(f"{name}: {own or 'the limits of the service'}.")


def _user(session: Session, email: str) -> User:
    user = queries.user_by_email(session, email.strip().lower())
    if user is None:
        raise NotFoundError(f"No account signs in as {email!r}. `tunewright accounts list` shows them.")
    return user
