"""The usage report, whose credits are the books' own rows, and the daily look at what is stored."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sqlalchemy.orm import Session

from core.db.session import database_now
from core.db.upsert import insert_or_ignore
from core.ledger.models import TransactionKind
from core.usage import queries
from core.usage.models import StorageDay
from core.usage.queries import Span

__all__ = ["Cost", "CostGroup", "Usage", "Width", "after", "begin", "costs", "note_storage", "report", "steps"]


class Width(StrEnum):
    """How long a bucket of the report is."""

    DAY = "1d"
    MONTH = "1mo"


class CostGroup(StrEnum):
    """What costs are told apart by."""

    LINE_ITEM = "line_item"
    USER = "user_id"


@dataclass(frozen=True)
class Cost:
    """What an organization was charged within a bucket, less what it was given back. None: of all."""

    start: datetime
    line_item: str | None
    user_id: str | None
    credits: int


@dataclass
class Usage:
    """What one organization used between two moments."""

    organization_id: str
    organization: str
    start: datetime
    end: datetime
    jobs: int = 0  # that ended
    trained_tokens: int = 0
    device_seconds: float = 0.0  # charged
    charged_credits: int = 0
    refunded_credits: int = 0
    storage_bytes: int = 0  # the most on any day

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not (self.jobs or self.charged_credits or self.refunded_credits or self.storage_bytes)


def report(session: Session, span: Span, width: Width) -> list[Usage]:
    """A row for each organization and bucket, oldest bucket first. The session must see one moment."""
    starts = list(steps(span.start, span.end, width))
    names = queries.organizations(session, span)
    rows = {
        (organization_id, start): Usage(organization_id, name, start, min(after(start, width), span.end))
        for start in starts
        for organization_id, name in names
    }
    for organization_id, moment, tokens, seconds in queries.finished_jobs(session, span):
        row = rows[organization_id, _bucket(moment, span, width)]
        row.jobs += 1
        row.trained_tokens += tokens
        row.device_seconds += seconds
    for organization_id, moment, kind, amount in queries.charges(session, span):
        row = rows[organization_id, _bucket(moment, span, width)]
        if kind is TransactionKind.CAPTURE:
            row.charged_credits += amount
        else:
            row.refunded_credits += amount
    for organization_id, day, most_bytes in queries.storage_days(session, span):
        row = rows[organization_id, _bucket(day, span, width)]
        row.storage_bytes = max(row.storage_bytes, most_bytes)
    return list(rows.values())


def costs(session: Session, span: Span, groups: Collection[CostGroup]) -> list[Cost]:
    """What was charged on each day and in each group, as the books have it; the first day begins with the span."""
    sums: Counter[tuple[datetime, str | None, str | None]] = Counter()
    for moment, model, user_id, kind, amount in queries.job_costs(session, span):
        line_item = f"{model}, fine-tuning" if CostGroup.LINE_ITEM in groups else None
        key = (_bucket(moment, span, Width.DAY), line_item, user_id if CostGroup.USER in groups else None)
        sums[key] += amount if kind is TransactionKind.CAPTURE else -amount
    return [Cost(*key, credits) for key, credits in sums.items()]


def begin(moment: datetime, width: Width) -> datetime:
    """The beginning of the day or month of this moment, UTC."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if width is Width.DAY else day.replace(day=1)


def after(start: datetime, width: Width) -> datetime:
    """The beginning of the next bucket."""
    if width is Width.DAY:
        return begin(start, width) + timedelta(days=1)
    return begin(begin(start, width) + timedelta(days=32), width)


def steps(start: datetime, end: datetime, width: Width) -> Iterator[datetime]:
    """The beginnings of the buckets between two moments; the first begins at `start` itself."""
    while start < end:
        yield start
        start = after(start, width)


def note_storage(session: Session) -> None:
    """Note what every organization stores now, where that is the most of today."""
    today = begin(database_now(session), Width.DAY)
    for organization_id, size_bytes in queries.stored_bytes(session).items():
        insert_or_ignore(session, StorageDay, organization_id=organization_id, day=today, most_bytes=size_bytes)
        row = session.get_one(StorageDay, (organization_id, today), with_for_update=True)
        row.most_bytes = max(row.most_bytes, size_bytes)


def _bucket(moment: datetime, span: Span, width: Width) -> datetime:
    return max(span.start, begin(moment, width))
