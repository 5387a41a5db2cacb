"""Running a function of ours in a child process that has limits, and outlives neither its caller nor them.

The child is a fresh interpreter (a fork would inherit locks, connections and secrets), told to call one function at a
time. What goes to it is pickled; what comes back is JSON only, because code that reads hostile input must not be able
to send its parent a pickle.
"""

import fcntl
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self

import orjson

from core import errors
from core.errors import TunewrightError
from core.limited.limits import ChildDiedError, Limit, LimitExceededError, Limits
from core.limited.wire import HEADER, Kind

__all__ = ["LimitedChild", "run_limited"]

_READ_BYTES = 1024**2
_KEPT_VARIABLES = ("PATH", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX")


def run_limited(function: Callable[..., Any], *arguments: object, limits: Limits) -> Any:
    """`function(*arguments)` in a child of its own; returns its value, which must be plain JSON data.

    The function must be importable by name. Raises LimitExceededError, ChildDiedError, and any TunewrightError that
    the function raises.
    """
    with LimitedChild(limits) as child:
        return next(child.values(function, *arguments))


class LimitedChild:
    """A child that can be called again and again, by one thread at a time. After an error of its own it is ended."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process = _spawn(limits)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._buffer = bytearray()
        with suppress(OSError):  # an unprivileged user has a limit on these
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _READ_BYTES)  # it works on while its answers are used

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it can be called. An answer that was not read to its end makes it useless."""
        return self._process.poll() is None and not self._input.closed

    def kill(self) -> None:
        """End the child from another thread than the one that calls it, which gets ChildDiedError."""
        self._process.kill()

    def close(self) -> None:
        """End the child now."""
        self._process.kill()
        self._process.wait()
        self._output.close()
        with suppress(BrokenPipeError):  # what it was not there to read
            self._input.close()

    def values(self, function: Callable[..., Any], *arguments: object) -> Generator[Any]:
        """The values that `function(*arguments)` yields, as they come, or the one that it returns.

        Each has the limits to itself. Raises what `run_limited` raises.
        """
        is_done = False
        try:
            self._send(pickle.dumps((function, arguments)))
            while True:
                kind, payload = self._receive()
                if kind is Kind.DONE:
                    is_done = True
                    return
                if kind is Kind.ERROR:
                    is_done = True
                    raise _rebuilt(payload)
                if kind is Kind.LIMIT:
                    limit = Limit(payload.decode())
                    raise LimitExceededError(limit, getattr(self.limits, limit))
                yield orjson.loads(payload)
        finally:
            if not is_done:
                self.close()

    def _send(self, request: bytes) -> None:
        try:
            self._input.write(HEADER.pack(Kind.CALL, len(request)))
            self._input.write(request)
            self._input.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> tuple[Kind, bytes]:
        deadline = time.monotonic() + self.limits.wall_seconds
        kind, length = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > self.limits.reply_bytes:
            raise LimitExceededError(Limit.REPLY_BYTES, self.limits.reply_bytes)
        return Kind(kind), self._read(length, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        if len(self._buffer) < size:  # most answers came with the one before
            self._wait_for(size, deadline)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _wait_for(self, size: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while len(self._buffer) < size:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LimitExceededError(Limit.WALL_SECONDS, self.limits.wall_seconds)
                chunk = os.read(self._output.fileno(), _READ_BYTES)
                if not chunk:
                    raise self._death()
                self._buffer += chunk

    def _death(self) -> Exception:
        exit_code = self._process.wait()
        if exit_code == -signal.SIGXCPU:
            return LimitExceededError(Limit.CPU_SECONDS, self.limits.cpu_seconds)
        return ChildDiedError(exit_code)


def _rebuilt(payload: bytes) -> TunewrightError:
    """The error of ours that a child raised."""
    data = orjson.loads(payload)
    kind: type[TunewrightError] = getattr(errors, data["class"])
    return kind(data["message"], code=data["code"], param=data["param"])


# The kernel ends a child with the thread that started it, so all are started by a thread that lives as long as the
# process: threads that serve requests come and go.
_starter: ThreadPoolExecutor | None = None


def _forget_starter() -> None:
    global _starter
    _starter = None


os.register_at_fork(after_in_child=_forget_starter)


def _spawn(limits: Limits) -> subprocess.Popen[bytes]:
    global _starter
    if _starter is None:
        _starter = ThreadPoolExecutor(1, thread_name_prefix="limited-children")
    return _starter.submit(_popen, limits).result()


def _popen(limits: Limits) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "core.limited.child", str(os.getpid())]
    return subprocess.Popen(  # noqa: S603 - our own module, and numbers
        [*command, str(limits.cpu_seconds), str(limits.memory_bytes), str(limits.reply_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is its parent's to hear
    )


def _environment() -> dict[str, str]:
    """What Python needs to start and find our packages: no setting and no secret of ours."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
