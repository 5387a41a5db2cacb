"""What programs that this worker starts may know: not the passwords of its database, broker, store and hub."""

import os
import re

__all__ = ["forget_secrets", "without_secrets"]

_SECRET = re.compile(
    r"(TUNEWRIGHT|AWS|PG|S3|BOTO)_?.*|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_KEY|DATABASE_URL|REDIS_URL)"
)


def without_secrets() -> dict[str, str]:
    """This process's environment without what training needs no part of."""
    return {name: value for name, value in os.environ.items() if not _SECRET.fullmatch(name.upper())}


def forget_secrets() -> None:
    """Take what training needs no part of out of this process's environment, for it and all that it starts."""
    kept = without_secrets()
    for name in set(os.environ) - set(kept):
        del os.environ[name]
