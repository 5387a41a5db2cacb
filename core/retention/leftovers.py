"""What lies in the store without a record.

A worker lost its job, or died, before it could write down what it had stored; a file was deleted while the store was
away, or its upload was killed before it was written down.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy.orm import Session

from core.retention import queries

# As core.jobs.lease.Lease.storage_prefix, and uploads: nothing else is stored before it is written down.
_RECORDED_LATER = re.compile(r"[^/]+/(jobs/[^/]+/lease_[^/]+|files)/.+")
KEYS_AT_ONCE = 500


def recorded_later(keys: Iterable[str]) -> Iterator[Sequence[str]]:
    """Those of the store's keys that leases and uploads wrote, some at a time."""
    written = (key for key in keys if _RECORDED_LATER.fullmatch(key))
    while some := list(islice(written, KEYS_AT_ONCE)):
        yield some


def unrecorded(session: Session, keys: Sequence[str]) -> list[str]:
    """Those of the keys that no row names."""
    recorded = queries.recorded_keys(session, keys)
    return [key for key in keys if key not in recorded]
