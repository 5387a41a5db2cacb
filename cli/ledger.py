"""`tunewright ledger`: proving the books, and giving back what was charged."""

from typing import Annotated

import typer
from rich.text import Text

from cli.database import DataDirectory, open_database
from cli.terminal import err, out
from core.ledger import service
from core.reconciliation.service import verify
from core.settings_loading import load_settings

ledger = typer.Typer(no_args_is_help=True)


@ledger.command("verify")
def check(data: DataDirectory = None) -> None:
    """Prove the books from their rows alone; exit with 1 and say where they are broken, if they are."""
    with open_database(load_settings(data)) as database, database.snapshot() as session:
        proof = verify(session)
    for fault in proof.faults:
        err.print(Text.assemble((f"{fault.where}: ", "bold red"), fault.problem), soft_wrap=True)
    looked = f"{proof.transactions:,} transactions, {proof.entries:,} entries, {proof.jobs:,} jobs"
    if proof.faults:
        err.print(f"The books are broken in {len(proof.faults)} places ({looked}).")
        raise typer.Exit(1)
    out.print(f"The books are sound: {looked}.")


@ledger.command("refund")
def give_back(
    job: Annotated[str, typer.Argument(help="Id of the job that was charged.")],
    amount: Annotated[
        int | None, typer.Option("--credits", min=1, help="How many; everything left of the charge if not given.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="Names this refund: the same one again changes nothing.", metavar="TEXT")
    ] = "full",
    data: DataDirectory = None,
) -> None:
    """Give back what a job was charged, or a part of it."""
    with open_database(load_settings(data)) as database:
        booked = database.run(lambda session: service.refund(session, job, amount, reference=reference))
    out.print(f"{booked.amount_credits:,} credits of {job} are refunded.")
