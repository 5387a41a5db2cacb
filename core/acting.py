"""Who the code of this moment acts for: what a request, a command or a worker does is written down under this name.

It travels beside the call, as a request's id does: a deed is then written down in the one place that does it, whichever
door it came in by.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Acting", "ActorKind", "Person", "acting", "acting_as"]


class ActorKind(StrEnum):
    """What kind of caller acts."""

    SESSION = "session"  # a person's browser
    API_KEY = "api_key"
    COMMAND_LINE = "command_line"  # someone with access to the service's machine
    SYSTEM = "system"  # the service itself


@dataclass
class Acting:
    """Who acts, filled in as it becomes known: a request is somebody's once it is authenticated."""

    kind: ActorKind = ActorKind.SYSTEM
    user_id: str | None = None
    email: str | None = None  # of that user
    key_id: str | None = None
    key_prefix: str | None = None  # as lists show that key
    address: str | None = None
    name: str | None = None  # of the operating system's user, on the command line


@dataclass(frozen=True)
class Person:
    """A user as the log of what was done names them."""

    user_id: str
    email: str | None


_current: ContextVar[Acting | None] = ContextVar("acting", default=None)


def acting() -> Acting:
    """Who acts now; the service itself where nobody was named."""
    return _current.get() or Acting()


@contextmanager
def acting_as(who: Acting) -> Iterator[Acting]:
    """Everything inside is done by `who`, also in threads that are given this context."""
    token = _current.set(who)
    try:
        yield who
    finally:
        _current.reset(token)
