"""Keys that one object of a JSON text has twice: parsers keep the last value, and the others are gone unseen."""

import json
from typing import Any

from core.datasets.columns import shortened

__all__ = ["TWICE_FIX", "repeated_key", "said_twice"]

TWICE_FIX = "Keep one of them: of two values with one name, JSON readers lose one."


def said_twice(key: str) -> str:
    """What is wrong with an object that has the key twice."""
    return f"has the key {shortened(key)} twice in one object."


def repeated_key(value: object, text: str | bytes) -> str | None:
    """A key that an object in `text` has twice, where `value` is what a parser made of it."""
    if _marks(text) == _keys(value):  # as many as could be written there: nothing was dropped
        return None
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > 1:
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]

    try:
        json.loads(text, object_pairs_hook=look)
    except (ValueError, RecursionError):  # what else is wrong with it is said elsewhere
        return None
    return repeated[0] if repeated else None


def _marks(text: str | bytes) -> int:
    """Colons behind a quote: at least the keys of a text, more where strings hold such marks, -1 for spaced colons."""
    if isinstance(text, str):
        return -1 if '" :' in text or '"\t:' in text else text.count('":')
    return -1 if b'" :' in text or b'"\t:' in text else text.count(b'":')


def _keys(value: object) -> int:
    """The keys of all objects in a value."""
    kind = type(value)
    if kind is dict:
        count = len(value)  # type: ignore[arg-type]
        for inner in value.values():  # type: ignore[attr-defined]
            if type(inner) is not str:
                count += _keys(inner)
        return count
    if kind is list:
        return sum(map(_keys, value))  # type: ignore[call-overload]
    return 0
