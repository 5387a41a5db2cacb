"""How much of a process's work of one kind is done for one organization at once."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar

__all__ = ["Shares"]


class _Owned(Protocol):
    @property
    def organization_id(self) -> str: ...


Piece = TypeVar("Piece", bound=_Owned)


class Shares:
    """So many pieces at once for each organization. Safe to use from many threads.

    Counted here and not in the database: a piece is worked on to its end, though its row may be deleted meanwhile.
    """

    def __init__(self, each: float = math.inf) -> None:
        self._each = each
        self._lock = Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def next(self, claim: Callable[[frozenset[str]], Piece | None]) -> Iterator[Piece | None]:
        """Claim a piece of another organization than those that have their share, and count it while the block runs."""
        with self._lock:
            piece = claim(frozenset(owner for owner, held in self._held.items() if held >= self._each))
            if piece is not None:
                self._held[piece.organization_id] += 1
        try:
            yield piece
        finally:
            if piece is not None:
                with self._lock:
                    self._held[piece.organization_id] -= 1
