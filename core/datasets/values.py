"""Single values of rows: texts, numbers, typed parts and true or false, read without changing them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from core.datasets.columns import listed, shortened
from core.datasets.numbers import WrittenNumber, load_json
from core.datasets.repeated_keys import TWICE_FIX, repeated_key, said_twice
from core.datasets.row_errors import RowError

__all__ = [
    "MissingWord",
    "Parts",
    "as_list",
    "is_blank",
    "is_python_list",
    "kind_of",
    "missing_value",
    "read_flag",
    "read_parts",
]
__all__ += ["read_label", "read_optional_text", "read_text", "refuse_repeated_keys"]

_TEXT_TYPES = ("text", "input_text", "output_text")
_REASONING_TYPES = ("reasoning", "thinking")
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"  # zero-width spaces and joiners, byte order mark, soft hyphen
_BLANKS = _INVISIBLE + " \t\r\n\u00a0"
_NOTES = ("cache_control", "annotations", "citations", "logprobs", "id", "index", "thought", "thought_signature")
_LABELS = {
    "desirable": True,
    "desired": True,
    "chosen": True,
    "undesirable": False,
    "undesired": False,
    "rejected": False,
}
_LABELS |= {"-1": False}
_FLAGS = {"true": True, "false": False, "1": True, "0": False}


class MissingWord(str):
    """A cell of a text table that only says that a value is missing: nan, None, NULL."""


@dataclass(frozen=True)
class Parts:
    """What a message's content holds: its text, and apart from it reasoning and calls of tools."""

    text: str
    reasoning: str = ""
    calls: tuple[Any, ...] = ()


def is_blank(text: str) -> bool:
    """Whether nothing is written there that can be seen."""
    return not text or text.isspace() or (text[0] in _BLANKS and not text.strip(_BLANKS))


def kind_of(value: object) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    names |= {WrittenNumber: "a number", bytes: "bytes"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def missing_value(row: Mapping[str, Any], number: int, column: str, wanted: str) -> RowError:
    """The error of a row whose `column` is not `wanted`."""
    if column not in row:
        problem = f"there is no {shortened(column)}; the row has {listed(list(row), 8).replace('none', 'no columns')}."
    elif isinstance(value := row[column], MissingWord):
        problem = f"{shortened(column)} is {str(value)!r}, which tables write where a value is missing."
    elif is_python_list(value):
        problem = f"{shortened(column)} is a list as Python prints it, not JSON."
    else:
        problem = f"{shortened(column)} is {kind_of(value)}, not {wanted}."
    return RowError(number, problem, column, f"Give every row {wanted} in {shortened(column)}.")


def is_python_list(value: object) -> bool:
    """Whether a text is a list as Python prints it, which a table gets whose cells were lists."""
    return isinstance(value, str) and value.lstrip().startswith(("[{'", "[['"))


def read_text(row: Mapping[str, Any], number: int, column: str) -> str:
    """The text in `column`; numbers, dates, true and false as they are written, typed parts joined. Raises RowError."""
    value = row.get(column)
    if type(value) is str:
        return value
    if isinstance(value, list) and value:
        parts = read_parts(value, number, column)
        if parts.calls or parts.reasoning:
            raise RowError(number, f"{shortened(column)} holds more than text.", column, "Use `messages` for that.")
        return parts.text
    written = _written(value)
    if written is None:
        raise missing_value(row, number, column, "text")
    if not written:
        problem = f"{shortened(column)} is not a number ({value})."
        raise RowError(number, problem, column, "Fill in the missing value, or leave the row out.")
    return written


def _written(value: object) -> str | None:
    """A single value as it is written; "" for what is no number, None for what is no text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WrittenNumber):
        return value.written
    if isinstance(value, int | float | Decimal):
        return str(value) if math.isfinite(value) else ""
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date | time):
        return value.isoformat()
    return None


def read_optional_text(row: Mapping[str, Any], number: int, column: str | None) -> str:
    """The text in a column that may be missing or empty. Raises RowError for what is no text."""
    value = row.get(column) if column else None
    if type(value) is str:
        return value
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, MissingWord):
        return "" if value.lower() in ("nan", "<na>", "nat") else str(value)
    assert column is not None
    return read_text(row, number, column)


def read_flag(value: object) -> bool | None:
    """True and false however a row writes them: also 1, 0 and their text. None for anything else."""
    if isinstance(value, bool | int | float | str):
        return _FLAGS.get(str(value).lower().removesuffix(".0"))
    return None


def read_label(value: object) -> bool | None:
    """Whether a label says that an answer is desired: a flag, or the words and numbers that KTO's data sets use."""
    said = read_flag(value)
    if said is None and isinstance(value, int | float | str):
        return _LABELS.get(str(value).strip().lower().removesuffix(".0"))
    return said


def as_list(value: object, number: int = 0, param: str = "") -> list[Any] | None:
    """A list, also where a table stores it as JSON text.

    With the row's number, raises RowError for a key that an object of that text has twice.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            parsed = load_json(value)
        except (ValueError, RecursionError):
            return None
        if number:
            refuse_repeated_keys(parsed, value, number, param)
        return parsed if isinstance(parsed, list) else None
    return None


def refuse_repeated_keys(parsed: object, text: str, number: int, param: str) -> None:
    """Raise RowError for a key that an object of a JSON text has twice. `parsed` is what was made of the text."""
    if (key := repeated_key(parsed, text)) is not None:
        raise RowError(number, f"{param} {said_twice(key)}", param, TWICE_FIX)


def read_parts(parts: list[Any], number: int, param: str) -> Parts:
    """Typed parts, as OpenAI, Anthropic, Bedrock, Gemini and LLaMA-Factory write them. Raises RowError."""
    if len(parts) > 1 and all(isinstance(part, str) for part in parts):
        problem = f"{param} holds {len(parts)} texts, and which of them is meant is not said."
        raise RowError(number, problem, param, "Keep one, as text.")
    texts, reasoning, calls = [], [], []
    for index, part in enumerate(parts):
        kind, text = _typed(part)
        if unread := _unread(part):
            where = f"{param}[{index}]"
            problem = f"{where} has {listed(unread)} beside its text, which would be lost."
            raise RowError(number, problem, where, "Write it into the text, or leave it out.")
        if kind == "tool_call" and text is not None:
            calls.append(text)
        elif isinstance(text, str) and kind in _REASONING_TYPES:
            reasoning.append(text)
        elif isinstance(text, str) and kind in _TEXT_TYPES:
            texts.append(text)
        else:
            where = f"{param}[{index}]"
            raise RowError(number, f"{where} is of type {shortened(kind)}.", where, "Only text parts can be trained.")
    return Parts("".join(texts), "".join(reasoning), tuple(calls))


def _unread(part: Any) -> list[str]:
    """What a text part says beside its text, notes of the service that sent or caches it apart."""
    if not isinstance(part, Mapping) or part.get("type") not in (None, *_TEXT_TYPES):
        return []
    texts = ("type", "text", "value", str(part.get("type")))
    return [str(name) for name, value in part.items() if value not in (None, [], {}) and name not in (*texts, *_NOTES)]


def _typed(part: Any) -> tuple[str, Any]:
    """The type of a part, and what it holds."""
    if not isinstance(part, Mapping):
        return ("text", part) if isinstance(part, str) else (kind_of(part), None)
    kind = part.get("type")
    if kind is None and part.get("thought") is True:  # as Gemini marks them
        return "thinking", part.get("text")
    if kind is None:
        named = [name for name, value in part.items() if value is not None]
        kind = "text" if "text" in named else str(named[0]) if named else "null"
    kind = str(kind)
    inside = ("text", "value", kind) if kind in (*_TEXT_TYPES, *_REASONING_TYPES, "tool_call") else ()
    return kind, next((part[name] for name in inside if part.get(name) is not None), None)
