"""How deep a row is nested. Templates and encoders recurse, so depth is bounded where rows come in."""

__all__ = ["MAX_DEPTH", "MAX_KEYS", "MAX_PARTS", "has_too_many_parts", "is_too_deep"]

MAX_DEPTH = 64  # JSON Schemas of tools, the deepest thing rows hold in practice, stay under 20
# Lists and objects of one row. An empty one takes 2 bytes of JSON and 64 of memory.
MAX_PARTS = 250_000
MAX_KEYS = 4096  # columns of one row
_LOOKED_AT_BYTES = 2 * MAX_PARTS


def has_too_many_parts(text: bytes | str) -> bool:
    """Whether a JSON text may hold more lists and objects than a row may have."""
    if len(text) < _LOOKED_AT_BYTES:
        return False
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MAX_PARTS
    return text.count(b"[") + text.count(b"{") > MAX_PARTS


def is_too_deep(value: object, *, opening: int) -> bool:
    """Whether `value` is nested deeper than MAX_DEPTH. `opening`: brackets in its text, which bounds the depth."""
    if opening <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)
