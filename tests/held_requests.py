"""A server that leaves chosen requests unanswered, so that a test can act in the middle of one."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.waiting import PATIENCE_SECONDS, wait_for


class HeldRequests:
    """A WSGI application in front of another."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._held: re.Pattern[str] | None = None
        self._arrived = threading.Event()
        self._released = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        held = self._held
        if held is not None and held.search(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"):
            self._arrived.set()
            self._released.wait(PATIENCE_SECONDS)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer

    @contextmanager
    def at(self, pattern: str, *, context: Callable[[], str]) -> Iterator[Callable[[], None]]:
        """Hold requests whose method and path match, until the end of the block; what it is given waits for one."""

        def arrived() -> None:
            wait_for(self._arrived.is_set, what=f"a request for {pattern}", context=context)

        self._arrived.clear()
        self._released.clear()
        self._held = re.compile(pattern)
        try:
            yield arrived
        finally:
            self._held = None
            self._released.set()
