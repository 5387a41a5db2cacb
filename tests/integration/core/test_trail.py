"""What the log says of a job: each thing once, with whose it is, and only what was committed."""

from typing import Any

import pytest
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from core.db.leases import Holder
from core.db.session import Database
from core.errors import ErrorBody
from core.events.models import EventLevel
from core.jobs import lease as leases
from core.jobs import progress, queries
from core.jobs import service as jobs
from core.jobs.lease import Lease
from core.jobs.models import TallyKind
from core.settings import Settings
from tests.integration.core.queueing import DEVICE_CLASS, QUOTE_CREDITS, add_organization, queue_job

SETTINGS = Settings()


def claim(session: Session) -> Lease:
    claimed = leases.claim_next(session, SETTINGS, Holder("worker-a", ["cpu"]), DEVICE_CLASS)
    assert claimed is not None
    return claimed[0]


def test_each_step_of_a_job_is_one_line_with_its_job_organization_and_worker(database: Database) -> None:
    with database.transaction() as session:
        owner = add_organization(session, QUOTE_CREDITS)
    organization_id = owner.organization_id
    with capture_logs() as lines:
        job_id = database.run(lambda session: queue_job(session, SETTINGS, owner))
        database.run(lambda session: jobs.pause_job(session, organization_id, job_id))
        database.run(lambda session: jobs.pause_job(session, organization_id, job_id))  # no second pause, no line
        database.run(lambda session: jobs.resume_job(session, SETTINGS, organization_id, job_id))
        held = database.run(claim)
        database.run(lambda session: progress.enter_phase(session, held, "training", "Training"))
        database.run(lambda session: progress.say(session, held, "The disk is full", EventLevel.WARN))
        database.run(lambda session: leases.start_again(session, SETTINGS, held, "died (signal 9)"))
        database.run(lambda session: leases.release(session, held, "The worker shuts down"))
        held_again = database.run(claim)
        database.run(lambda session: jobs.cancel_job(session, organization_id, job_id))
        step = progress.Metrics({"step": 1, "total_steps": 4, "train_loss": 1.0}, 64)
        database.run(lambda session: progress.record_metrics(session, held_again, [step], None))
        database.run(lambda session: leases.renew(session, SETTINGS, held_again, 6.0))
        database.run(lambda session: leases.release(session, held_again, "asked to"))
        database.run(lambda session: jobs._delete(session, organization_id, job_id))
    assert [line["event"] for line in lines] == [
        *("job_created", "job_paused", "job_resumed", "job_claimed", "job_phase", "job_warned", "training_restarts"),
        *("job_requeued", "job_claimed", "job_cancel_requested", "job_ended", "job_deleted"),
    ]
    assert {(line["job_id"], line["organization"]) for line in lines} == {(job_id, organization_id)}
    without_worker = {line["event"] for line in lines if "worker" not in line}
    assert without_worker == {"job_created", "job_paused", "job_resumed", "job_deleted"}
    assert {line["worker"] for line in lines if "worker" in line} == {"worker-a"}
    assert find(lines, "job_requeued")["reason"] == "The worker shuts down"
    assert find(lines, "training_restarts")["cause"] == "died (signal 9)"
    ended = find(lines, "job_ended")
    assert (ended["status"], ended["code"], ended["charged_credits"], ended["used_seconds"]) == (
        "cancelled",
        None,
        1,
        6,
    )


def test_an_end_says_its_code_and_a_lost_lease_its_worker(database: Database) -> None:
    with database.transaction() as session:
        owner = add_organization(session, QUOTE_CREDITS)
    job_id = database.run(lambda session: queue_job(session, SETTINGS, owner))
    impatient = Settings(lease_seconds=1e-6, heartbeat_seconds=1e-7)
    database.run(lambda session: leases.claim_next(session, impatient, Holder("worker-a", ["cpu"]), DEVICE_CLASS))
    with database.read() as session:
        lost_before = lost(session)
    with capture_logs() as lines:
        database.run(lambda session: leases.reclaim_expired(session, SETTINGS))
        held = database.run(claim)
        error = ErrorBody("The training loss is not finite.", "server_error", None, "loss_diverged")
        database.run(lambda session: leases.fail(session, held, error))
    assert [line["event"] for line in lines] == ["lease_expired", "job_requeued", "job_claimed", "job_ended"]
    assert {(line["job_id"], line["worker"]) for line in lines} == {(job_id, "worker-a")}
    ended = find(lines, "job_ended")
    assert (ended["status"], ended["code"], ended["log_level"]) == ("failed", "loss_diverged", "warning")
    with database.read() as session:
        assert lost(session) == lost_before + 1


def test_what_is_rolled_back_is_not_said(database: Database) -> None:
    with database.transaction() as session:
        owner = add_organization(session, QUOTE_CREDITS)

    def fail_after_all(session: Session) -> None:
        queue_job(session, SETTINGS, owner)
        raise LookupError

    with capture_logs() as lines, pytest.raises(LookupError):
        database.run(fail_after_all)
    assert lines == []


def lost(session: Session) -> int:
    """How many leases were lost so far."""
    return sum(row.count for row in queries.tallies(session) if row.kind is TallyKind.LOST_LEASE)


def find(lines: list[Any], event: str) -> dict[str, Any]:
    """The only line with this event."""
    (found,) = [line for line in lines if line["event"] == event]
    return dict(found)
