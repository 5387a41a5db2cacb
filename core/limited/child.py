"""The child's side: set the limits, then call what is asked for until the parent closes the pipe.

CPU time and memory are the kernel's to enforce (`RLIMIT_CPU`, `RLIMIT_DATA`): code that hangs inside one C call, as a
huge power does, runs no check of ours. `RLIMIT_DATA` counts what was allocated, written to or not, and neither shared
libraries nor mapped files, which `RLIMIT_AS` would count. The wall clock is the parent's.
"""

import ctypes
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from core import errors
from core.errors import TunewrightError
from core.limited.lifetime import end_with_parent
from core.limited.limits import Limit
from core.limited.wire import HEADER, Kind

_NICENESS = 10  # it gives way to the processes that answer requests
_PR_SET_DUMPABLE = 4  # prctl(2): others of the same user cannot attach, and no core dump holds data


def main() -> None:
    """Serve calls on standard input; answers go to what was standard output, which prints cannot reach."""
    parent_id, cpu_seconds, memory_bytes, reply_bytes = map(int, sys.argv[1:5])
    end_with_parent(parent_id)
    os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    calls = sys.stdin.buffer
    is_memory_limited = False
    while header := calls.read(HEADER.size):
        function, arguments = pickle.loads(calls.read(HEADER.unpack(header)[1]))  # noqa: S301 - from our parent
        if not is_memory_limited:  # what was imported to get here is not counted
            _limit_memory(memory_bytes)
            is_memory_limited = True
        _limit_cpu(cpu_seconds)
        try:
            result = function(*arguments)
            for value in result if isinstance(result, Iterator) else (result,):
                _answer(answers, value, reply_bytes)
                _limit_cpu(cpu_seconds)
            _send(answers, Kind.DONE, b"")
        except MemoryError:
            _send(answers, Kind.LIMIT, Limit.MEMORY_BYTES.encode())
        except TunewrightError as error:
            _send(answers, Kind.ERROR, _plain(error))


def _answer(answers: BinaryIO, value: Any, reply_bytes: int) -> None:
    payload = orjson.dumps(value)
    if len(payload) > reply_bytes:
        _send(answers, Kind.LIMIT, Limit.REPLY_BYTES.encode())
    else:
        _send(answers, Kind.VALUE, payload)


def _send(answers: BinaryIO, kind: Kind, payload: bytes) -> None:
    answers.write(HEADER.pack(kind, len(payload)))
    answers.write(payload)
    answers.flush()


def _plain(error: TunewrightError) -> bytes:
    """The error as its parent can build it again: the class is the nearest that `core.errors` names."""
    name = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
    return orjson.dumps({"class": name, "message": error.message, "code": error.code, "param": error.param})


def _limit_cpu(seconds: int) -> None:
    """Have the kernel end this process after so much more CPU time, rounded up to a whole second."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, hard))


def _limit_memory(allowed_bytes: int) -> None:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held_bytes = int(status.partition("VmData:")[2].split(maxsplit=1)[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held_bytes + allowed_bytes, hard))


if __name__ == "__main__":
    main()
