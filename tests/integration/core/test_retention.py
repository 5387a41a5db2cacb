"""What the settings say is kept only for so long goes then, and what a job needs does not; by default nothing goes."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.schemas.files import show_file
from core.accounts.service import Actor
from core.artifacts.models import JobArtifact
from core.audit.models import AuditType
from core.audit.queries import AuditFilter, page
from core.datasets import service as files
from core.datasets.models import StoredFile
from core.db.base import utc_now
from core.db.leases import Holder
from core.events.models import JobEvent
from core.jobs import lease as leases
from core.jobs import progress
from core.jobs import service as jobs
from core.jobs.models import Job
from core.plans.models import Plan
from core.registry.models import FineTunedModel
from core.retention import jobs as retention
from core.retention.files import expire_files, file_kept_until
from core.runtime import Runtime, open_runtime
from core.settings import Settings
from tests.integration.core.queueing import add_organization, queue_job
from worker.tidying import remove_old_logs

DAY = 86400
LONG_AGO = timedelta(days=100)


@pytest.fixture
def runtime(settings: Settings) -> Iterator[Runtime]:
    """What maintenance opens, on either database."""
    opened = open_runtime(settings)
    yield opened
    opened.close()


@pytest.fixture
def actor(runtime: Runtime) -> Actor:
    with runtime.database.transaction() as session:
        return add_organization(session, 1000)


def keeping(runtime: Runtime, **seconds: int) -> Runtime:
    """The same service, keeping things only for so long."""
    return replace(runtime, settings=runtime.settings.model_copy(update=seconds))


def upload(runtime: Runtime, actor: Actor, created_at: datetime) -> StoredFile:
    stored = files.store_upload(runtime, actor.organization_id, "rows.jsonl", [b'{"text": "a"}\n'])
    with runtime.database.transaction() as session:
        file = files.create_file(session, actor.organization_id, stored)
        file.created_at = created_at
    return file


def train(runtime: Runtime, actor: Actor) -> str:
    """A job that succeeded and published; its id."""
    with runtime.database.transaction() as session:
        queue_job(session, runtime.settings, actor)
    claimed = runtime.database.run(lambda s: leases.claim_next(s, runtime.settings, Holder("w", ["cpu"]), "cpu"))
    assert claimed is not None
    held = claimed[0]
    prefix = held.storage_prefix(actor.organization_id)
    published = [
        progress.PublishedFile(name, runtime.store.put(f"{prefix}/{name}", [name.encode()]))
        for name in ("adapter.zip", "metrics.csv")
    ]
    outcome = progress.Outcome(published, processed_tokens=9, message="Good")
    runtime.database.run(lambda s: progress.succeed(s, held, outcome))
    return held.job_id


def age(runtime: Runtime, job_id: str) -> None:
    """Let the job and its model be of long ago."""
    with runtime.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(finished_at=utc_now() - LONG_AGO))
        made = update(FineTunedModel).where(FineTunedModel.job_id == job_id)
        session.execute(made.values(created_at=utc_now() - LONG_AGO))


def count(session: Session, table: Any, job_id: str) -> int:
    return len(session.scalars(select(table).where(table.job_id == job_id)).all())


def test_old_files_go_but_for_those_that_a_job_or_a_standing_plan_needs(
    runtime: Runtime, actor: Actor, tmp_path: Path
) -> None:
    old, new = upload(runtime, actor, utc_now() - LONG_AGO), upload(runtime, actor, utc_now())
    needed, planned = (upload(runtime, actor, utc_now() - LONG_AGO) for _ in range(2))
    with runtime.database.transaction() as session:
        job_id = queue_job(session, runtime.settings, actor)
        job = jobs.get_job(session, actor.organization_id, job_id)
        job.training_file_id, job.plan.validation_file_id = needed.id, planned.id
        assert isinstance(job.plan, Plan)
    assert expire_files(runtime) == 0, "by default files stay"
    strict = keeping(runtime, file_retention_seconds=30 * DAY)
    until = file_kept_until(strict.settings, new)
    assert until == new.created_at + timedelta(days=30)
    assert show_file(new, until).expires_at == int(until.timestamp())

    assert expire_files(strict) == 1
    assert not runtime.store.exists(old.storage_key)
    for kept in (new, needed, planned):
        assert runtime.store.exists(kept.storage_key)
    with runtime.database.transaction() as session:
        jobs.cancel_job(session, actor.organization_id, job_id)
        plan = jobs.get_job(session, actor.organization_id, job_id).plan
        plan.expires_at = utc_now()
    assert expire_files(strict) == 2
    assert expire_files(strict) == 0


def test_old_models_go_with_their_artifacts_and_say_so(runtime: Runtime, actor: Actor) -> None:
    old, new = train(runtime, actor), train(runtime, actor)
    age(runtime, old)
    with runtime.database.read() as session:
        keys = {artifact.job_id: artifact.storage_key for artifact in session.scalars(select(JobArtifact))}
    assert retention.expire_models(runtime) == 0, "by default models stay for ever"
    assert retention.expire_models(keeping(runtime, model_retention_seconds=30 * DAY)) == 1
    assert (runtime.store.exists(keys[old]), runtime.store.exists(keys[new])) == (False, True)
    with runtime.database.read() as session:
        assert (count(session, JobArtifact, old), count(session, JobArtifact, new)) == (0, 2)
        models = session.scalars(select(FineTunedModel).where(FineTunedModel.deleted_at.is_(None))).all()
        assert [model.job_id for model in models] == [new]
        said = [event.message for event in session.scalars(select(JobEvent).where(JobEvent.job_id == old))]
        assert "Its model and artifacts were deleted: this service keeps them for 30 days" in said
        (deleted,) = page(session, AuditFilter(types=[AuditType.MODEL_DELETED]), after=None, limit=5)
        assert deleted.actor_kind == "system"
        assert jobs.get_job(session, actor.organization_id, old).charged_credits is not None, "the job itself stays"


def test_old_events_go_and_the_job_stays(runtime: Runtime, actor: Actor) -> None:
    old, new = train(runtime, actor), train(runtime, actor)
    age(runtime, old)
    strict = keeping(runtime, event_retention_seconds=30 * DAY).settings
    assert runtime.database.run(lambda s: retention.expire_events(s, runtime.settings)) == 0
    assert runtime.database.run(lambda s: retention.expire_events(s, strict)) == 1
    with runtime.database.read() as session:
        assert count(session, JobEvent, old) == 0
        assert count(session, JobEvent, new) > 0
        assert jobs.get_job(session, actor.organization_id, old).fine_tuned_model is not None


def test_logs_that_were_moved_aside_go(tmp_path: Path) -> None:
    for name, days in (("api.log", 90), ("api.log.1", 40), ("worker.log.1", 10)):
        path = tmp_path / name
        path.write_text("{}")
        os.utime(path, (time.time() - days * DAY,) * 2)
    remove_old_logs(tmp_path, Settings().log_retention_seconds)
    assert {path.name for path in tmp_path.iterdir()} == {"api.log", "worker.log.1"}
