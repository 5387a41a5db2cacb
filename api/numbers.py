"""Numbers that clients write into headers."""

import re

_DIGITS = re.compile(r"[0-9]{1,18}")


def whole_number(text: str) -> int | None:
    """The number in ASCII digits; None for anything else: `str.isdigit` takes more than `int` does."""
    return int(text) if _DIGITS.fullmatch(text) else None
