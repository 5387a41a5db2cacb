"""What met a limit a while ago and would meet it again: refused at once, since it would cost as much each time."""

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import Lock

from core.errors import TunewrightError

__all__ = ["Refusals"]

REMEMBERED_SECONDS = 600.0
MOST_REMEMBERED = 512


class Refusals:
    """Errors by what they were found in, remembered for some minutes. Safe to use from many threads."""

    def __init__(self, *codes: str) -> None:
        self._codes = codes
        self._known: OrderedDict[Hashable, tuple[float, TunewrightError]] = OrderedDict()
        self._lock = Lock()

    def check(self, key: Hashable) -> None:
        """Raises the error that was found in `key` not long ago."""
        with self._lock:
            found_at, error = self._known.get(key, (0.0, None))
            if error is None:
                return
            if time.monotonic() - found_at > REMEMBERED_SECONDS:
                del self._known[key]
                return
        raise type(error)(error.message, code=error.code, param=error.param)

    @contextmanager
    def remembered(self, key: Hashable) -> Iterator[None]:
        """Refuse `key` where it was refused not long ago; else remember what the block raises with one of the codes."""
        self.check(key)
        try:
            yield
        except TunewrightError as error:
            if error.code in self._codes:
                self._remember(key, error)
            raise

    def _remember(self, key: Hashable, error: TunewrightError) -> None:
        with self._lock:
            self._known[key] = (time.monotonic(), error)
            self._known.move_to_end(key)
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
