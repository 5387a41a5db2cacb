"""Machines whose clocks are apart agree on who holds a job and who is alive: they ask the database."""

from datetime import datetime, timedelta, tzinfo

import pytest

from core.db.base import utc_now
from core.db.leases import Holder
from core.db.session import Database
from core.fleet import service as fleet
from core.jobs import lease as leases
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.settings import Settings
from tests.integration.core.queueing import DEVICE_CLASS, QUOTE_CREDITS, add_organization, add_worker, queue_job


@pytest.mark.parametrize("apart", [timedelta(minutes=10), timedelta(minutes=-10)], ids=["ahead", "behind"])
def test_a_worker_whose_clock_is_ten_minutes_off_keeps_its_job(
    database: Database, apart: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, true_now = Settings(), utc_now()

    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + apart

    with database.transaction() as session:
        owner = add_organization(session, QUOTE_CREDITS)
    job_id = database.run(lambda session: queue_job(session, settings, owner))
    with monkeypatch.context() as its_clock:
        its_clock.setattr("core.db.base.datetime", Off)
        assert abs(utc_now() - true_now - apart) < timedelta(minutes=1)
        with database.transaction() as session:
            claimed = leases.claim_next(session, settings, Holder("off", ["cpu"]), DEVICE_CLASS)
            assert claimed is not None
            leases.renew(session, settings, claimed[0], 1.0)
            add_worker(session, "off")

    assert database.run(lambda session: leases.reclaim_expired(session, settings)) == []
    with database.read() as session:
        job = session.get_one(Job, job_id)
        assert job.status is JobStatus.RUNNING
        assert job.lease_expires_at is not None
        assert job.lease_expires_at - true_now < timedelta(minutes=5)
        assert [worker.id for worker in fleet.workers(session, settings)] == ["off"]
