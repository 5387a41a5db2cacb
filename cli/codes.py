"""`tunewright codes`: words that are worth credits."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.database import DataDirectory, open_database
from cli.terminal import JsonOption, out, print_list, table_of
from core.db.base import utc_now
from core.ledger.codes import create_code, disable_code, enable_code, list_codes
from core.ledger.models import CreditCode
from core.settings_loading import load_settings

LONGEST_LIST = 1000

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
def show(as_json: JsonOption = False, data: DataDirectory = None) -> None:
    """List the codes and how often each was redeemed."""
    table, rows = table_of("Code", "Credits", "Redeemed", "Per account", "Expires"), []
    with open_database(load_settings(data)) as database, database.read() as session:
        for use in list_codes(session, limit=LONGEST_LIST).rows:
            code = use.code
            rows.append(
                {
                    "code": code.code,
                    "credits": code.credits,
                    "redemptions": use.redemptions,
                    "max_redemptions": code.max_redemptions,
                    "per_account": code.per_account,
                    "expires_at": code.expires_at,
                    "disabled_at": code.disabled_at,
                }
            )
            table.add_row(
                code.code,
                f"{code.credits:,}",
                f"{use.redemptions} of {code.max_redemptions}" if code.max_redemptions else str(use.redemptions),
                str(code.per_account),
                "disabled" if code.disabled_at is not None else _expiry(code),
            )
    print_list(table, rows, as_json)


@codes.command("disable")
def disable(
    name: Annotated[str, typer.Argument(help="The code; case does not matter.")], data: DataDirectory = None
) -> None:
    """Make a code worthless from now on; what it gave stays."""
    with open_database(load_settings(data)) as database:
        use = database.run(lambda session: disable_code(session, name))
    out.print(f"{use.code.code} is disabled; it was redeemed {use.redemptions} times.")


@codes.command("enable")
def enable(
    name: Annotated[str, typer.Argument(help="The code; case does not matter.")], data: DataDirectory = None
) -> None:
    """Let a disabled code work again."""
    with open_database(load_settings(data)) as database:
        use = database.run(lambda session: enable_code(session, name))
    out.print(f"{use.code.code} works again.")


def _expiry(code: CreditCode) -> str:
    if code.expires_at is None:
        return "never"
    return f"{code.expires_at:%Y-%m-%d}" + (" (expired)" if code.expires_at <= utc_now() else "")
