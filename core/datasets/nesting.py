"""How deep a row is nested. Templates and encoders recurse, so depth is bounded where rows come in."""

__all__ = ["MAX_DEPTH", "is_too_deep"]

MAX_DEPTH = 64  # JSON Schemas of tools, the deepest thing rows hold in practice, stay under 20


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
