"""`tunewright codes`: words that are worth credits."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from cli.database import DataDirectory, load_settings, open_database
from cli.terminal import out
from core.db.base import utc_now
from core.ledger import queries
from core.ledger.codes import create_code

codes = typer.Typer(no_args_is_help=True)


@codes.command("create")
def create(
    name: Annotated[str, typer.Argument(help="The code, as people will type it; case does not matter.")],
    amount: Annotated[int, typer.Option("--credits", min=1, help="Credits of each redemption.")],
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Last moment, in UTC.")
    ] = None,
    max_redemptions: Annotated[int | None, typer.Option(min=1, help="Redemptions over all accounts.")] = None,
    per_account: Annotated[int, typer.Option(min=1, help="Redemptions of one account.")] = 1,
    data: DataDirectory = None,
) -> None:
    """Make a credit code."""
    with open_database(load_settings(data)) as database, database.transaction() as session:
        code = create_code(
            session,
            name,
            amount,
            expires_at=expires.replace(tzinfo=UTC) if expires else None,
            max_redemptions=max_redemptions,
            per_account=per_account,
        )
    out.print(f"{code.code} is worth {code.credits:,} credits.")


@codes.command("list")
def show(data: DataDirectory = None) -> None:
    """List the codes and how often each was redeemed."""
    table = Table("Code", "Credits", "Redeemed", "Per account", "Expires")
    with open_database(load_settings(data)) as database, database.read() as session:
        for code in queries.codes(session):
            redeemed = queries.count_redemptions(session, code.id)
            over = code.expires_at is not None and code.expires_at <= utc_now()
            table.add_row(
                code.code,
                f"{code.credits:,}",
                f"{redeemed} of {code.max_redemptions}" if code.max_redemptions else str(redeemed),
                str(code.per_account),
                "never" if code.expires_at is None else f"{code.expires_at:%Y-%m-%d}" + (" (expired)" if over else ""),
            )
    out.print(table)
