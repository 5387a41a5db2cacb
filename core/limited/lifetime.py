"""Processes that must not outlive the one that started them, however it ends."""

import ctypes
import os
import signal

__all__ = ["end_with_parent"]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(parent_id: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends. Linux only.

    `parent_id`: the process that started this one; where it has ended already, this one ends too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent_id is not None and os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGKILL)
