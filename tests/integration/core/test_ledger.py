"""The books: against a model of ten lines, and under real concurrency, on both databases."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.accounts.models import Organization
from core.accounts.service import ensure_owner
from core.db.base import utc_now
from core.db.session import Database
from core.errors import ConflictError, InsufficientCreditsError, InvalidRequestError, NotFoundError
from core.ids import new_id
from core.ledger import codes, service
from core.ledger.models import CodeRedemption, LedgerEntry
from core.ledger.service import Balance

JOBS = st.sampled_from(["ftjob-a", "ftjob-b", "ftjob-c"])
AMOUNTS = st.integers(min_value=0, max_value=1000)


class Books(RuleBasedStateMachine):
    """Random verbs on one organization, next to the arithmetic they should come to."""

    database: Database

    @initialize()
    def open_account(self) -> None:
        self.organization_id = new_id("org-")
        self.available = 0
        self.remaining: dict[str, int] = {}
        with self.database.transaction() as session:
            session.add(Organization(id=self.organization_id, name="Test"))

    @rule(amount=AMOUNTS, key=st.integers(0, 5))
    def grant(self, amount: int, key: int) -> None:
        granted = self.__dict__.setdefault("granted", {})
        self.available += amount if key not in granted else 0
        granted.setdefault(key, amount)
        with self.database.transaction() as session:
            service.grant(session, self.organization_id, amount, idempotency_key=f"{self.organization_id}{key}")

    @rule(job=JOBS, amount=AMOUNTS)
    def hold(self, job: str, amount: int) -> None:
        with self.database.transaction() as session:
            if job not in self.remaining and amount > self.available:
                with pytest.raises(InsufficientCreditsError):
                    service.hold(session, self.organization_id, self._id(job), amount)
                return
            service.hold(session, self.organization_id, self._id(job), amount)
        if job not in self.remaining:
            self.remaining[job] = amount
            self.available -= amount

    @rule(job=JOBS, used=AMOUNTS)
    def settle(self, job: str, used: int) -> None:
        with self.database.transaction() as session:
            service.settle(session, self.organization_id, self._id(job), used)
        held = self.remaining.get(job, 0)
        self.available += held - min(used, held)
        if job in self.remaining:
            self.remaining[job] = 0

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "organization_id"):
            return
        with self.database.read() as session:
            assert service.balance(session, self.organization_id) == Balance(
                self.available, sum(self.remaining.values())
            )
            assert session.scalar(select(func.sum(LedgerEntry.amount_credits))) in (None, 0)

    def _id(self, job: str) -> str:
        return f"{job}-{self.organization_id}"


def test_books_agree_with_the_model(database: Database) -> None:
    machine = type("OpenBooks", (Books,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def _organization(session: Session) -> str:
    return ensure_owner(session).organization_id


def test_one_single_use_code_and_many_hands(database: Database) -> None:
    with database.transaction() as session:
        organizations = [_organization(session)]
        for number in range(1, 16):
            organizations.append(new_id("org-"))
            session.add(Organization(id=organizations[-1], name=str(number)))
        codes.create_code(session, "once", 100, max_redemptions=1)

    def redeem(organization_id: str) -> str:
        try:
            database.run(lambda session: codes.redeem(session, organization_id, " Once "))
        except ConflictError as error:
            return error.code
        return "redeemed"

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(redeem, organizations))
    assert outcomes.count("redeemed") == 1
    assert outcomes.count("code_exhausted") == 15
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(CodeRedemption)) == 1


def test_a_balance_for_five_jobs_accepts_five_of_sixteen(database: Database) -> None:
    with database.transaction() as session:
        organization_id = _organization(session)
        service.grant(session, organization_id, 50, idempotency_key="start")

    def hold(number: int) -> bool:
        try:
            database.run(lambda session: service.hold(session, organization_id, f"ftjob-{number}", 10))
        except InsufficientCreditsError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(hold, range(16))) == 5
    with database.read() as session:
        assert service.balance(session, organization_id) == Balance(0, 50)


def test_a_code_says_why_it_gives_nothing(database: Database) -> None:
    with database.transaction() as session:
        organization_id = _organization(session)
        codes.create_code(session, "old", 10, expires_at=utc_now())
        codes.create_code(session, "mine", 10)
        redeemed = codes.redeem(session, organization_id, "mine")
        assert redeemed.balance == Balance(10, 0)
        for code, kind, name in [
            ("nothing", NotFoundError, "code_unknown"),
            ("old", InvalidRequestError, "code_expired"),
            ("MINE", ConflictError, "code_already_redeemed"),
        ]:
            with pytest.raises(kind) as raised:
                codes.redeem(session, organization_id, code)
            assert raised.value.code == name
        codes.redeem_for_job(session, organization_id, "mine")
        assert service.balance(session, organization_id) == Balance(10, 0)


def test_a_capture_above_the_hold_is_refused(database: Database) -> None:
    with database.transaction() as session:
        organization_id = _organization(session)
        service.grant(session, organization_id, 100, idempotency_key="start")
        service.hold(session, organization_id, "ftjob-1", 40)
        with pytest.raises(ConflictError, match="40 are held"):
            service.capture(session, organization_id, "ftjob-1", 41)
        assert service.settle(session, organization_id, "ftjob-1", 1000) == 40
        assert service.balance(session, organization_id) == Balance(60, 0)
