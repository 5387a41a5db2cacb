"""The options of `planner.options` as fields of request and response bodies."""

from collections.abc import Mapping
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field, create_model

from api.schemas.base import OrAuto, RequestBody, ResponseBody
from planner.options import OPTIONS, Option, RequestedConfig, read_value
from planner.plans import TrainingPlan, planned_options
from planner.setup import Hyperparameters, TrainingSetup

LONGEST_NAME = 200
ModuleNames = Annotated[list[Annotated[str, Field(max_length=LONGEST_NAME)]], Field(max_length=64)]
_PLANNED_IN = {"setup": get_type_hints(TrainingSetup), "hyperparameters": get_type_hints(Hyperparameters)}


def with_options(base: type[RequestBody], within: str = "") -> type[RequestBody]:
    """A request body that also has the options that are said within `within`, each to be left out or "auto"."""
    fields: dict[str, Any] = {key: _asked(option) for key, option in _options_in(within).items()}
    return create_model(f"{base.__name__}WithOptions", __base__=base, **fields)


def with_planned(base: type[ResponseBody], within: str = "") -> type[ResponseBody]:
    """A response body that also has what became of those options."""
    options = _options_in(within).items()
    fields: dict[str, Any] = {key: _planned(option) for key, option in options if option.planned is not None}
    return create_model(f"{base.__name__}WithOptions", __base__=base, **fields)


def planned_fields(plan: TrainingPlan, within: str = "") -> dict[str, Any]:
    """The values of the fields that `with_planned` adds."""
    values = planned_options(plan)
    return {key: values[option.name] for key, option in _options_in(within).items() if option.name in values}


def read_requested(bodies: Mapping[str, RequestBody | None]) -> RequestedConfig:
    """What was asked for, from the bodies with options by where they are in the request, which is at "" itself."""
    requested = {}
    for option in OPTIONS:
        within, _, key = option.path.rpartition(".")
        requested[option.name] = read_value(option, getattr(bodies[within], key, None))
    return RequestedConfig(**requested)


def _options_in(within: str) -> dict[str, Option]:
    """The options at one place of a request, by their names there."""
    found = {option.path.rpartition(".")[::2]: option for option in OPTIONS}
    return {key: option for (place, key), option in found.items() if place == within}


def _asked(option: Option) -> tuple[Any, Any]:
    if option.default is not None:
        return _wire_type(option), Field(option.default.value, description=option.description)
    limits = {"ge": option.minimum, "gt": option.above, "le": option.maximum, "lt": option.below}
    bounds: dict[str, Any] = {name: limit for name, limit in limits.items() if limit is not None}
    if option.type is float:
        bounds["allow_inf_nan"] = False
    more: Any = {"examples": list(option.values)} if option.values else None
    field = Field(None, description=option.description, json_schema_extra=more)
    return Annotated[_wire_type(option) | None, Field(**bounds), OrAuto()], field


def _wire_type(option: Option) -> Any:
    if option.type is tuple:
        return ModuleNames
    if option.type is str:
        return Annotated[str, Field(max_length=64)]
    if issubclass(option.type, Enum):
        return Literal[tuple(str(value) for value in option.type)]
    return option.type


def _planned(option: Option) -> tuple[Any, Any]:
    assert option.planned is not None
    holder, _, name = option.planned.partition(".")
    hint = _PLANNED_IN[holder].get(name, option.type)  # a property has an option's own type
    kinds = get_args(hint)
    is_optional = NoneType in kinds or option.methods != type(option).methods
    value: Any = next((kind for kind in kinds if kind is not NoneType), hint)
    if option.type is tuple:
        value = list[str]
    return (value | None if is_optional else value), Field(description=_first_sentence(option.description))


def _first_sentence(text: str) -> str:
    """What a response says of an option; how to ask for it follows in requests alone."""
    return text.partition(". ")[0].rstrip(".") + "."
