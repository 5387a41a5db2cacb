"""What programs that this worker starts may know: not the passwords of its database, broker, store and hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["secrets_hidden", "without_secrets"]

_SECRET = re.compile(
    r"(TUNEWRIGHT|AWS|PG|S3|BOTO)_?.*|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_KEY|DATABASE_URL|REDIS_URL)"
)


def without_secrets() -> dict[str, str]:
    """This process's environment without what training needs no part of."""
    return {name: value for name, value in os.environ.items() if not _SECRET.fullmatch(name.upper())}


@contextmanager
def secrets_hidden() -> Iterator[None]:
    """For starting a program whose environment cannot be given: it inherits this process's, so that is changed."""
    kept = without_secrets()
    hidden = {name: value for name, value in os.environ.items() if name not in kept}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
