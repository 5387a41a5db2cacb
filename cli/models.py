"""`tunewright models`: base models on this machine."""

import subprocess
from typing import Annotated

import typer

from cli.database import DataDirectory
from cli.terminal import JsonOption, err, out, print_list, table_of
from core.errors import ServiceUnavailableError
from core.hub_access import of_this_machine
from core.logging import configure_logging
from core.registry.base_models import ModelRef, local_model_ids
from core.settings_loading import load_settings
from planner import catalogue
from worker.base_weights import ensure_weights

models = typer.Typer(no_args_is_help=True)


@models.command("fetch")
def fetch(
    model: Annotated[str, typer.Argument(help="A catalogue id, a hub id (owner/name), or a folder's name.")],
    data: DataDirectory = None,
) -> None:
    """Get a base model's weights onto this machine, once, and print where they are."""
    settings = load_settings(data)
    configure_logging(settings.log_level, as_json=settings.log_json and not err.is_terminal)
    try:
        _, directory = ensure_weights(settings, ModelRef(model, None), of_this_machine())
    except subprocess.CalledProcessError as error:
        raise ServiceUnavailableError(f"Converting {model} ended with code {error.returncode}; see above.") from None
    err.print(f"{model} is ready.")
    out.print(str(directory), soft_wrap=True)


@models.command("list")
def show(as_json: JsonOption = False, data: DataDirectory = None) -> None:
    """List the catalogue and the models in the models folder."""
    local = local_model_ids(load_settings(data).resolved_models_dir)
    known = catalogue.models()
    named = {entry.id for entry in known}
    lines = [(entry.id, entry.hub_id, entry.id in local) for entry in known]
    lines += [(model, "", True) for model in local if model not in named]
    table = table_of("Id", "Hub id", "On this machine")
    for model, hub_id, is_local in lines:
        table.add_row(model, hub_id, "yes" if is_local else "")
    rows = [{"id": model, "hub_id": hub_id, "is_local": is_local} for model, hub_id, is_local in lines]
    print_list(table, rows, as_json)
