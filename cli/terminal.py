"""Where the command line writes: results on standard output, everything else on standard error."""

from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def error_line(message: str) -> None:
    """Say what went wrong, as text that is never taken for markup and never wrapped inside a word of a log."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def warning_line(source: str, message: str) -> None:
    """Say what a process of the service warned of."""
    err.print(Text.assemble((f"{source}: ", "yellow"), message), soft_wrap=True)
