"""What of a file's rows is kept to be shown: cut, whatever a row holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson

from core.datasets.examples import Example, Message

__all__ = ["ColumnSample", "ColumnSamples", "clipped", "excerpt", "without_nul"]

_TEXT_CHARACTERS = 2000
_INNER_CHARACTERS = 200  # of a text within tools and calls
_ITEMS = 20
_DEPTH = 6
_SAMPLES, _SAMPLE_CHARACTERS = 3, 80
_COLUMNS, _NAME_CHARACTERS = 500, 200
_LARGEST_NUMBER = 2**63  # that a JSON writer takes
_NUL, _SHOWN_NUL = "\0", "\u2400"  # the symbol for it: PostgreSQL stores no NUL


@dataclass(frozen=True)
class ColumnSample:
    """A column and the first different values in it, as text that is cut."""

    name: str
    values: tuple[str, ...]


class ColumnSamples:
    """The columns of rows that pass by, in the order met, each with its first different values."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}

    def take(self, row: Mapping[str, Any], *, with_values: bool) -> None:
        """Note the row's columns, and its values where they are wanted."""
        for name in row:
            if name not in self._values and len(self._values) < _COLUMNS and len(name) <= _NAME_CHARACTERS:
                self._values[name] = []
        if with_values:
            for name, value in row.items():
                self._note(name, value)

    def _note(self, name: str, value: Any) -> None:
        known = self._values.get(name)
        if known is None or len(known) == _SAMPLES or value is None or value in ("", []):
            return
        text = excerpt(value, _SAMPLE_CHARACTERS)
        if text not in known:
            known.append(text)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._values)

    def samples(self) -> tuple[ColumnSample, ...]:
        """The columns with their values."""
        return tuple(ColumnSample(name, tuple(values)) for name, values in self._values.items())


def excerpt(value: object, characters: int) -> str:
    """The beginning of a value, in one line of text."""
    if not isinstance(value, str):
        small = _cut(value, characters, _DEPTH)
        value = orjson.dumps(small, default=str).decode()
    text = " ".join(value[: 2 * characters].split())
    return text if len(text) <= characters else text[:characters] + "…"


def clipped(example: Example) -> Example:
    """The example as it is kept: its first messages and tools, with texts cut."""
    text = example.text[:_TEXT_CHARACTERS] if example.text is not None else None
    reference = example.reference[:_TEXT_CHARACTERS] if example.reference is not None else None
    messages = tuple(_clipped_message(message) for message in example.messages[:_ITEMS])
    tools = tuple(_cut(tool, _INNER_CHARACTERS, _DEPTH) for tool in example.tools[:5])
    return replace(example, text=text, reference=reference, messages=messages, tools=tools)


def _clipped_message(message: Message) -> Message:
    extra = _cut(message.extra, _INNER_CHARACTERS, _DEPTH)
    return replace(message, content=message.content[:_TEXT_CHARACTERS], extra=extra)


def without_nul(value: Any) -> Any:
    """Plain data as a database can store it: a symbol in place of each NUL character."""
    if isinstance(value, str):
        return value.replace(_NUL, _SHOWN_NUL)
    if isinstance(value, Mapping):
        return {without_nul(name): without_nul(inner) for name, inner in value.items()}
    return [without_nul(inner) for inner in value] if isinstance(value, list | tuple) else value


def _cut(value: Any, characters: int, depth: int) -> Any:
    """The value with its texts cut, its lists and objects shortened, and nothing below a depth."""
    if isinstance(value, str):
        return value if len(value) <= characters else value[:characters] + "…"
    if isinstance(value, Mapping):
        if not depth:
            return "…"
        first = islice(value.items(), _ITEMS)
        return {str(name)[:characters]: _cut(inner, characters, depth - 1) for name, inner in first}
    if isinstance(value, list | tuple):
        return [_cut(inner, characters, depth - 1) for inner in value[:_ITEMS]] if depth else "…"
    is_number = isinstance(value, int | float) and -_LARGEST_NUMBER < value < _LARGEST_NUMBER
    return value if is_number or value is None else str(value)[:characters]
