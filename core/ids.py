"""Ids: a prefix that says what, then a ULID, so that ids sort by time of creation."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """A fresh id such as `ftjob-01JD…`. `prefix` includes its separator."""
    return f"{prefix}{ULID()}"
