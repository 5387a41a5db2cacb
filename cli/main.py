"""`tunewright`: the table of commands, and what happens to their errors.

Only the module of the command that was asked for is imported. The others are listed from this table, so that the
command line answers at once although some commands need the database, the planner or a tokenizer.
"""

import sys
from collections.abc import Callable
from importlib import import_module

import typer

from cli.terminal import error_line
from core.errors import InvalidSettingsError, TunewrightError

__all__ = ["COMMANDS", "app", "build"]

USAGE_ERROR = 2

COMMANDS = {
    "up": ("cli.up:up", "Run the whole service on this machine, with nothing else installed."),
    "plan": ("cli.plan:plan", "Plan a run on this machine, without a service: method, memory, time and price."),
    "jobs": ("cli.jobs:jobs", "List fine-tuning jobs, newest first."),
    "codes": ("cli.codes:codes", "Make, list and disable credit codes."),
    "ledger": ("cli.ledger:ledger", "Prove the books, and refund what was charged."),
    "keys": ("cli.keys:keys", "Make, list and revoke API keys."),
    "accounts": ("cli.accounts:accounts", "Make and list accounts, and limit what they may use."),
    "hub-token": ("cli.hub_token:hub_token", "Set, show and remove an organization's token for the model hub."),
    "link": ("cli.keys:link", "Print a link that signs the owner in, once."),
    "workers": ("cli.fleet:workers", "List the workers that have reported lately, and their devices."),
    "models": ("cli.models:models", "List base models and fetch their weights."),
    "api": ("cli.processes:api", "Run the HTTP API."),
    "worker": (
        "cli.processes:worker",
        "Run the training worker of this machine, or the maintenance worker.",
    ),
    "check": ("cli.check:check", "Check the settings, and whether the database, the broker and the store answer."),
    "backup": ("cli.backups:backup", "Back up the database and the stored objects, while the service runs."),
    "restore": ("cli.backups:restore", "Put a backup back, into an empty service or in place of what is there."),
    "audit": ("cli.reports:audit", "List who did what to which object, newest first."),
    "usage": (
        "cli.reports:usage",
        "List what each organization used, by month: jobs, tokens, device time, credits and storage.",
    ),
    "migrate": ("cli.migrate:migrate", "Bring the database to the schema of this release."),
}


def app() -> None:
    """Run the command line. An expected error is one line on standard error and exit code 1."""
    try:
        build(sys.argv[1:])()
    except InvalidSettingsError as error:
        for line in error.message.splitlines():
            error_line(line)
        sys.exit(USAGE_ERROR)
    except TunewrightError as error:
        error_line(error.message)
        sys.exit(1)


def build(arguments: list[str]) -> typer.Typer:
    """The application as these arguments need it: the command they name for real, the others as lines of the help."""
    application = typer.Typer(
        name="tunewright",
        help="Fine-tune language models on your own machines, through OpenAI's API.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (target, summary) in COMMANDS.items():
        if name != wanted:
            application.command(name, help=summary)(_listed)
            continue
        command = _load(target)
        if isinstance(command, typer.Typer):
            application.add_typer(command, name=name, help=summary)
        else:
            application.command(name)(command)
    return application


def _load(target: str) -> typer.Typer | Callable[..., None]:
    module, _, attribute = target.partition(":")
    command: typer.Typer | Callable[..., None] = getattr(import_module(module), attribute)
    return command


def _listed() -> None:
    """Stands in the help for a command that was not asked for."""
