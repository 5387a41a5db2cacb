"""Numbers of JSON as they were written: 1e3 is not 1000.0, 1.10 is not 1.1, and -0 is not 0.

A float forgets its spelling, and what a model is trained on are spellings. Whatever a float would print differently is
kept as a `WrittenNumber`; all others stay plain numbers.
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ["DECODER", "WrittenNumber", "dump_json", "is_respelled", "load_json"]


class WrittenNumber(float):
    """A number that prints as it was written."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, written: str) -> "WrittenNumber":
        number = super().__new__(cls, written)
        number.written = written
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]
        return (self.written,)

    def __repr__(self) -> str:
        return self.written

    __str__ = __repr__


def _float(written: str) -> float:
    number = float(written)
    return number if repr(number) == written else WrittenNumber(written)


def _int(written: str) -> int | float:
    return int(written) if written != "-0" else WrittenNumber(written)


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


DECODER = json.JSONDecoder(parse_float=_float, parse_int=_int, parse_constant=_refuse_constant)


def load_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError where it is nested too deeply."""
    return DECODER.decode(text)


def is_respelled(value: object, text: bytes) -> bool:
    """Whether a fast parser's value may print other numbers than its text holds: floats, large integers and -0."""
    return b"-0" in text or _holds_float(value)


def _holds_float(value: object) -> bool:
    kind = type(value)
    if kind is dict:
        return any(_holds_float(inner) for inner in value.values())  # type: ignore[attr-defined]
    if kind is list:
        return any(_holds_float(inner) for inner in value)  # type: ignore[attr-defined]
    return kind is float


def dump_json(value: object, **options: Any) -> str:
    """`json.dumps`, with numbers as they were written."""
    written: list[str] = []
    text = json.dumps(_marked(value, written), **options)
    for index, number in enumerate(written):
        text = text.replace(json.dumps(_mark(index)), number, 1)
    return text


def _mark(index: int) -> str:
    return f"\x00{index}\x00"  # no JSON text holds a raw NUL, and a decoded one is dumped as an escape of its own


def _marked(value: object, written: list[str]) -> object:
    """The value with a string in place of each written number, which `written` collects in order."""
    if isinstance(value, WrittenNumber):
        written.append(value.written)
        return _mark(len(written) - 1)
    if isinstance(value, Mapping):
        return {key: _marked(inner, written) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, written) for inner in value]
    return value
