"""The options of a run as flags of a command."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from planner.options import OPTIONS, Option, RequestedConfig, read_value

_SHORTER = {"lora_rank": ("--rank",)}
_ASKED = "requested"


def with_option_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each option; what is said by them is its argument `requested`."""

    @wraps(command)
    def run(**given: Any) -> None:
        asked = {option.name: read_value(option, _said(given.pop(option.name))) for option in OPTIONS}
        command(**given, **{_ASKED: RequestedConfig(**asked)})

    own = [parameter for name, parameter in signature(command).parameters.items() if name != _ASKED]
    run.__signature__ = Signature([*own, *map(_flag, OPTIONS)])  # type: ignore[attr-defined]
    return run


def _said(value: Any) -> Any:
    """Names may be said by one flag, with commas, or by several."""
    if not isinstance(value, list):
        return value
    return [name for said in value for part in said.split(",") if (name := part.strip())] or None


def _flag(option: Option) -> Parameter:
    name = option.name.replace("_", "-")
    switch = f"--{name}/--no-{name}" if option.type is bool else f"--{name}"
    limits: dict[str, Any] = {}
    if option.type in (int, float):
        limits = {"min": option.minimum, "max": option.maximum}
    about = typer.Option(
        switch, *_SHORTER.get(option.name, ()), help=f"{option.help}.", rich_help_panel=str(option.group), **limits
    )
    taken: Any = list[str] if option.type is tuple else option.type
    annotation = taken if option.default is not None else taken | None
    return Parameter(
        option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=Annotated[annotation, about]
    )
