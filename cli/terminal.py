"""Where the command line writes: results on standard output, everything else on standard error."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="As a JSON array, for programs.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def error_line(message: str) -> None:
    """Say what went wrong, as text that is never taken for markup and never wrapped inside a word of a log."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def warning_line(source: str, message: str) -> None:
    """Say what a process of the service warned of."""
    err.print(Text.assemble((f"{source}: ", "yellow"), message), soft_wrap=True)


def table_of(whole: str, *folding: str) -> Table:
    """A table for a list: its first column, an id to copy, is whole at any width, and the others fold."""
    return Table(Column(whole, no_wrap=True), *(Column(name, overflow="fold") for name in folding))


def print_list(table: Table, rows: Sequence[Mapping[str, Any]], as_json: bool, empty: str = "") -> None:
    """Print a list for people, or its rows for programs; `empty` is said to people instead of an empty table."""
    if as_json:
        typer.echo(json.dumps(rows, default=str, indent=2))
    else:
        out.print(table if rows or not empty else empty)
