"""What programs that this worker starts may know: not the passwords of its database, broker, store and hub."""

import multiprocessing
import os
import re
import sys

__all__ = ["start_again_without_secrets", "without_secrets"]

_SECRET = re.compile(
    r"(TUNEWRIGHT|AWS|PG|S3|BOTO)_?.*|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_KEY|DATABASE_URL|REDIS_URL)"
)
_SIGNED_IN = re.compile(r"://[^/@]+@")  # a proxy's or an index's address with a name and a password


def without_secrets() -> dict[str, str]:
    """This process's environment without what training needs no part of."""
    return {
        name: value
        for name, value in os.environ.items()
        if not _SECRET.fullmatch(name.upper()) and not _SIGNED_IN.search(value)
    }


def start_again_without_secrets() -> None:
    """Run this process's program anew, as the same process, unless its environment is free of secrets already.

    Deleting variables would not do: /proc shows the environment that a program was started with, of its forks too.
    """
    kept = without_secrets()
    if kept == dict(os.environ):
        return
    if multiprocessing.parent_process() is not None:  # a fork, whose program is another's: what it starts knows none
        os.environ.clear()
        os.environ.update(kept)
        return
    os.execve(sys.executable, sys.orig_argv, kept)  # noqa: S606 - this very program, as it was started
