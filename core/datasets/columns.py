"""Names of columns: how they are compared, and where what a row may have beside its shape is usually found."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["USUAL_COLUMNS", "column_of", "columns_by_name", "is_media_column", "listed", "plain_name", "shortened"]

# What rows of any shape may have beside it, and the columns that hold it in the data sets people share.
USUAL_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction"),
    "input": ("input",),
    "context": ("context", "passage"),
    "history": ("history", "chat_history", "conversation_history"),
    "label": ("label", "kto_tag"),
}
_MEDIA = re.compile(r"(?:image|img|picture|photo|video|audio)s?(?:_?(?:data|bytes|base64|paths?|files?|filenames?))?")
_SEPARATORS = re.compile(r"[\W_]+")


def plain_name(name: str) -> str:
    """The name in small letters, with one underscore for whatever is neither letter nor digit."""
    return _SEPARATORS.sub("_", name.casefold()).strip("_")


@lru_cache(maxsize=4096)
def is_media_column(name: str) -> bool:
    """Whether a column of this name holds images, sounds or films."""
    return _MEDIA.fullmatch(plain_name(name)) is not None


def columns_by_name(columns: Iterable[str]) -> dict[str, str]:
    """The columns by their plain names; the first of several with the same."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(plain_name(column), column)
    return by_name


def column_of(row: Mapping[str, Any], columns: Mapping[str, str], role: str) -> str | None:
    """The column of this row that holds an optional role: the one mapped to it, else one of its usual columns.

    A row is asked each time, because a column may be used by one row in a thousand. Mapped to "", a role has none.
    """
    column = columns.get(role)
    if column is not None:
        return column or None
    return next((name for name in USUAL_COLUMNS[role] if name in row and name not in columns.values()), None)


def shortened(value: object, length: int = 60) -> str:
    """A value from a file as a message may quote it."""
    if not isinstance(value, str):
        return reprlib.repr(value)
    return repr(value) if len(value) <= length else f"{value[:length]!r}…"


def listed(columns: Sequence[str], most: int = 12) -> str:
    """The names of columns, as a message lists them."""
    names = ", ".join(map(shortened, columns[:most])) or "none"
    return names + (f" and {len(columns) - most} more" if len(columns) > most else "")
