"""Frozen dataclasses to JSON columns and back."""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

Value = TypeVar("Value")


@cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def to_plain(value: object) -> dict[str, Any]:
    """The dataclass as JSON-ready dictionaries and lists."""
    plain: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json")
    return plain


def from_plain(cls: type[Value], plain: object) -> Value:
    """The dataclass that `to_plain` took apart. Raises pydantic.ValidationError for anything else."""
    value: Value = _adapter(cls).validate_python(plain)
    return value
