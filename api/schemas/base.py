"""What all bodies share: strict types, no unknown fields, and `"auto"` for what the planner decides."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidatorFunctionWrapHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

_SURROGATE = re.compile("[\ud800-\udfff]")
LATEST_SECONDS = 253_402_300_799  # the end of the year 9999, the last that a date can say


class RequestBody(BaseModel):
    """A JSON body. A field it does not know is refused by name, with the nearest one it does know."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            if (problem := _unstorable(data)) is not None:
                raise PydanticCustomError("unstorable_text", "Text that cannot be kept", {"problem": problem})
            for name in data:
                if name not in cls.model_fields:
                    nearest = get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.5)
                    raise PydanticCustomError(
                        "unknown_field",
                        "Unknown field",
                        {"field": str(name), "nearest": nearest[0] if nearest else None},
                    )
        return data


def _unstorable(value: Any) -> str | None:
    """What no database keeps in a text, or no encoding can write: found here, wherever in a body it is."""
    if isinstance(value, str):
        if "\0" in value:
            return "the character NUL"
        return "half of a surrogate pair" if _SURROGATE.search(value) else None
    if isinstance(value, Mapping):
        return next((found for pair in value.items() for part in pair if (found := _unstorable(part))), None)
    if isinstance(value, list):
        return next((found for part in value if (found := _unstorable(part))), None)
    return None


class ResponseBody(BaseModel):
    """A JSON object of the wire."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class IdentifiedBody(ResponseBody):
    """A JSON object that lists can hold."""

    id: str


class OrAuto:
    """Annotation of an optional field: "auto" is taken too, and becomes None."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        value = handler(source)
        return core_schema.no_info_wrap_validator_function(
            _auto_to_none,
            value,
            json_schema_input_schema=core_schema.union_schema([core_schema.literal_schema(["auto"]), value]),
        )


def _auto_to_none(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return None if value is None or value == "auto" else handler(value)


def unix_seconds(moment: datetime) -> int:
    """A time as the wire shows it: whole seconds since 1970, UTC."""
    return int(moment.timestamp())


def unix_seconds_or_none(moment: datetime | None) -> int | None:
    """As `unix_seconds`, for a time that may not have come yet."""
    return None if moment is None else unix_seconds(moment)


def from_unix_seconds(seconds: int | None) -> datetime | None:
    """The moment that the wire names, if it names one."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
