"""The usage report's sums are the books', whatever happened; what was stored is remembered when it is gone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.artifacts.objects import StoredObject
from core.datasets import service as files
from core.datasets.service import Upload
from core.db.base import utc_now
from core.db.leases import Holder
from core.db.session import Database
from core.ids import new_id
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.ledger import service as ledger
from core.ledger.models import AccountKind, TransactionKind
from core.retention.files import delete_file
from core.settings import Settings
from core.usage import service as usage
from core.usage.queries import Span
from core.usage.service import Usage, Width
from tests.integration.core.queueing import add_organization, queue_job


def totals(rows: list[Usage]) -> tuple[int, int, int, int, float]:
    return (
        sum(row.jobs for row in rows),
        sum(row.charged_credits for row in rows),
        sum(row.refunded_credits for row in rows),
        sum(row.trained_tokens for row in rows),
        sum(row.device_seconds for row in rows),
    )


def test_the_sums_are_the_books(database: Database, settings: Settings) -> None:
    with database.transaction() as session:
        actor, other = add_organization(session, 1000), add_organization(session, 1000)
        ids = [queue_job(session, settings, actor) for _ in range(3)]
        queue_job(session, settings, other)
    for _ in range(2):
        claimed = database.run(lambda s: leases.claim_next(s, settings, Holder("w", ["cpu"]), "cpu"))
        assert claimed is not None
        held = claimed[0]
        database.run(lambda s, held=held: leases.renew(s, settings, held, 20.0))
        metrics = progress.PublishedFile("metrics.csv", StoredObject(f"{held.job_id}/metrics.csv", 10, "0" * 64))
        outcome = progress.Outcome([metrics], processed_tokens=100, message="Good")
        database.run(lambda s, held=held, outcome=outcome: progress.succeed(s, held, outcome))
    database.run(lambda s: jobs.cancel_job(s, actor.organization_id, ids[2]))
    database.run(lambda s: ledger.refund(s, ids[0], 1))

    end = utc_now() + timedelta(seconds=5)
    for width in Width:
        with database.snapshot() as session:
            rows = usage.report(session, Span(end - timedelta(days=70), end), width)
            revenue = ledger.queries.balance(session, ledger.account_id_of(AccountKind.REVENUE, None))
            own = [row for row in rows if row.organization_id == actor.organization_id]
            statement = ledger.list_transactions(session, actor.organization_id, after=None, limit=100).rows
        ended, charges, refunds, tokens, seconds = totals(rows)
        assert charges - refunds == revenue > 0
        assert (ended, tokens, seconds) == (3, 200, 40.0)
        assert refunds == 1
        captures = [row.amount_credits for row in statement if row.kind is TransactionKind.CAPTURE]
        assert totals(own)[1] == sum(captures)


def test_what_was_stored_is_remembered(database: Database, tmp_path: Path) -> None:
    with database.transaction() as session:
        actor = add_organization(session, 0)
        upload = Upload(new_id("file-"), "a.jsonl", StoredObject("k", 5000, "0" * 64))
        files.create_file(session, actor.organization_id, upload)
        usage.note_storage(session)
    with database.transaction() as session:
        delete_file(session, actor.organization_id, upload.id)
        usage.note_storage(session)
    end = utc_now() + timedelta(seconds=5)
    with database.snapshot() as session:
        (row,) = usage.report(session, Span(usage.begin(end, Width.MONTH), end, actor.organization_id), Width.MONTH)
    assert row.storage_bytes == 5000


def test_months_begin_and_end_where_the_calendar_says() -> None:
    start, end = datetime(2026, 11, 20, tzinfo=UTC), datetime(2027, 2, 2, tzinfo=UTC)
    months = [f"{one:%Y-%m-%d}" for one in usage.steps(start, end, Width.MONTH)]
    assert months == ["2026-11-20", "2026-12-01", "2027-01-01", "2027-02-01"]
    assert len(list(usage.steps(start, end, Width.DAY))) == 74
