"""Organizations, plans and jobs for the tests of the books, without files, models or HTTP."""

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path

from sqlalchemy.orm import Session

from core.accounts.models import Organization, User
from core.accounts.service import Actor
from core.artifacts.store import open_store
from core.db.base import utc_now
from core.db.serialization import serialize
from core.db.session import Database
from core.idempotency.service import CreateRequest
from core.ids import new_id
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.service import JobRequest
from core.ledger import service as ledger
from core.plans.models import Plan
from core.queue.publisher import QueuePublisher
from core.reconciliation.service import Proof, verify
from core.runtime import Runtime
from core.settings import Settings
from core.throttle.service import Throttle
from planner.catalogue import models
from planner.devices import Device
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.plans import TrainingPlan
from planner.policy import choice as policy
from planner.policy.candidates import Question
from planner.statistics import DatasetStatistics

GIB = 1024**3
CPU = Device(0, "cpu", "CPU, 2 cores", "cpu", 24 * GIB, 20 * GIB, None, "cpu", 2)
STATISTICS = DatasetStatistics(100, 10_000, 5_000, tuple(range(50, 150)))
PRICES = {"default": 2000, "cpu": 600}


@dataclass(frozen=True)
class Owner:
    """An organization and its one user."""

    organization_id: str
    user_id: str

    @property
    def actor(self) -> Actor:
        """As a request acts for it."""
        return Actor(self.organization_id, self.user_id, is_admin=False, credential="key_test")


@cache
def small_plan() -> TrainingPlan:
    """A real plan of the planner's, for a small model on a CPU."""
    model = next(model for model in models() if model.id == "smollm2-135m-instruct")
    return policy.plan(Question(ModelSpec.from_config(model.config), STATISTICS, [CPU], RequestedConfig(), PRICES))


def open_organization(database: Database, credits_granted: int = 0) -> Owner:
    """A new organization with this many credits."""
    owner = Owner(new_id("org-"), new_id("user-"))
    with database.transaction() as session:
        session.add(Organization(id=owner.organization_id, name="Test"))
        session.flush()
        session.add(User(id=owner.user_id, organization_id=owner.organization_id, name="Tester"))
        if credits_granted:
            ledger.grant(session, owner.organization_id, credits_granted, idempotency_key=new_id("test:"))
    return owner


def save_plan(session: Session, owner: Owner, quote_credits: int) -> Plan:
    """A plan with this quote."""
    row = Plan(
        id=new_id("plan_"),
        organization_id=owner.organization_id,
        model="smollm2-135m-instruct",
        training_file_id=new_id("file-"),
        data_format={},
        statistics=serialize(STATISTICS),
        plan=serialize(replace(small_plan(), credits=quote_credits)),
        quote_credits=quote_credits,
        expires_at=utc_now() + timedelta(minutes=15),
    )
    session.add(row)
    session.flush()
    return row


def open_runtime(database: Database, directory: Path) -> Runtime:
    """What services are given, around this database. Nothing is ever sent."""
    settings = Settings(data_dir=directory)
    return Runtime(
        settings=settings,
        database=database,
        store=open_store((directory / "artifacts").absolute().as_uri()),
        publisher=QueuePublisher("redis://127.0.0.1:1"),
        throttle=Throttle("redis://127.0.0.1:1"),
    )


def create_job(session: Session, runtime: Runtime, owner: Owner, plan_id: str, key: str | None = None) -> Job:
    """A job for this plan. The same key again is the same create."""
    request = CreateRequest("key_test", "/v1/fine_tuning/jobs", plan_id, key, is_retry=False, window_seconds=600)
    return jobs.create_job(session, runtime, owner.actor, JobRequest(plan_id=plan_id, seed=1), request)


def prove(database: Database) -> Proof:
    """What the books' proof says now."""
    with database.snapshot() as session:
        return verify(session)
