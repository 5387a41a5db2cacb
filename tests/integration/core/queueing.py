"""Organizations and queued jobs without files or workers: a plan made for a model of the catalogue."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import cast

from sqlalchemy.orm import Session

from core.accounts.service import Actor
from core.datasets.examples import DataFormat, DataKind
from core.db.base import utc_now
from core.db.serialization import serialize
from core.fleet import service as fleet
from core.fleet.service import DeviceReport, WorkerReport
from core.idempotency.service import CreateRequest
from core.ids import new_id
from core.jobs import service as jobs
from core.jobs.service import JobRequest
from core.ledger import service as ledger
from core.plans.models import Plan
from core.runtime import Runtime
from core.settings import Settings
from planner.catalogue import find_model
from planner.devices import Device
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.plans import TrainingPlan
from planner.policy import choice as policy
from planner.policy.candidates import Question
from planner.statistics import DatasetStatistics
from tests.people import add_user

GIB = 1024**3
DEVICE_CLASS = "cpu"
QUOTE_CREDITS = 10
CPU = Device(0, "cpu", "Test CPU", "cpu", 16 * GIB, 12 * GIB, None, DEVICE_CLASS)


def add_organization(session: Session, credits_given: int) -> Actor:
    """An organization with these credits and one user, who acts."""
    user = add_user(session)
    ledger.grant(session, user.organization_id, credits_given, idempotency_key=new_id("test:"))
    return Actor(user.organization_id, user.id, is_admin=False, credential=f"key_{user.id}")


def add_worker(session: Session, worker_id: str) -> None:
    """A worker on the test's CPU that has just reported."""
    fleet.report(session, WorkerReport(worker_id, "here", 1, [DeviceReport(CPU)], {}))


def queue_job(session: Session, settings: Settings, actor: Actor) -> str:
    """A job of 10 credits in the queue; its id."""
    plan = Plan(
        id=new_id("plan_"),
        organization_id=actor.organization_id,
        model="smollm2-135m-instruct",
        training_file_id=new_id("file-"),
        data_format=serialize(DataFormat("text", DataKind.TEXT, {"text": "text"})),
        statistics=serialize(_statistics()),
        plan=serialize(_plan()),
        quote_credits=QUOTE_CREDITS,
        expires_at=utc_now().replace(year=9999),
    )
    session.add(plan)
    session.flush()
    create = CreateRequest(actor.credential, "/jobs", new_id("body-"), None, False, 60)
    runtime = cast(Runtime, SimpleNamespace(settings=settings))  # a plan that stands needs nothing that is open
    job = jobs.create_job(session, runtime, actor, JobRequest(plan_id=plan.id, seed=1), create)
    return job.id


def _statistics() -> DatasetStatistics:
    return DatasetStatistics(examples=32, tokens=3200, trained_tokens=1600, token_lengths=(100,) * 32)


@cache
def _plan() -> TrainingPlan:
    spec = ModelSpec.from_config(find_model("smollm2-135m-instruct").config)
    plan = policy.plan(Question(spec, _statistics(), [CPU], RequestedConfig(), {"default": 600}))
    return replace(plan, quote=replace(plan.quote, credits=QUOTE_CREDITS))
