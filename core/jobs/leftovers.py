"""What jobs left in the store without a record: a worker lost the job, or died, before it could write it down."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy.orm import Session

from core.jobs import queries

_OF_A_LEASE = re.compile(r"[^/]+/jobs/[^/]+/lease_[^/]+/.+")  # as core.jobs.lease.Lease.storage_prefix
KEYS_AT_ONCE = 500


def of_leases(keys: Iterable[str]) -> Iterator[Sequence[str]]:
    """Those of the store's keys that leases wrote, some at a time."""
    written = (key for key in keys if _OF_A_LEASE.fullmatch(key))
    while some := list(islice(written, KEYS_AT_ONCE)):
        yield some


def unrecorded(session: Session, keys: Sequence[str]) -> list[str]:
    """Those of the keys that no row names."""
    recorded = queries.recorded_keys(session, keys)
    return [key for key in keys if key not in recorded]
