"""The verbs of the books: against a model of ten lines, and one by one, on both databases."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.db.base import utc_now
from core.db.session import Database
from core.errors import ConflictError, InsufficientCreditsError, InvalidRequestError, NotFoundError, TunewrightError
from core.jobs.states import JobStatus
from core.ledger import codes, service
from core.ledger.service import Balance
from tests.integration.core.books import Owner, create_job, open_organization, open_runtime, prove, save_plan

AMOUNTS = st.integers(min_value=0, max_value=1000)
NAMES = st.sampled_from("abc")


class Model:
    """What the verbs should come to, in ten lines."""

    def __init__(self) -> None:
        self.grants, self.held, self.charged, self.refunds = {}, {}, {}, {}

    def left(self, job):
        return self.charged.get(job, 0) - sum(amount for (of, _), amount in self.refunds.items() if of == job)

    @property
    def balance(self) -> Balance:
        held = sum(amount for job, amount in self.held.items() if job not in self.charged)
        spent = sum(self.charged.values()) - sum(self.refunds.values())
        return Balance(sum(self.grants.values()) - spent - held, held)


class Books(RuleBasedStateMachine):
    """Random verbs on one organization, repeated and contradicted at random, next to the model."""

    database: Database

    @initialize()
    def open_account(self) -> None:
        self.owner = open_organization(self.database)
        self.model = Model()

    @rule(name=NAMES, amount=AMOUNTS)
    def grant(self, name: str, amount: int) -> None:
        known = self.model.grants.get(name)
        self._do(
            lambda session: service.grant(
                session, self.owner.organization_id, amount, idempotency_key=self._id(f"grant{name}")
            ),
            ConflictError if known not in (None, amount) else None,
        )
        self.model.grants.setdefault(name, amount)

    @rule(job=NAMES, amount=AMOUNTS)
    def hold(self, job: str, amount: int) -> None:
        known = self.model.held.get(job)
        if known is not None:
            refused = ConflictError if known != amount else None
        else:
            refused = InsufficientCreditsError if amount > self.model.balance.available_credits else None
        self._do(lambda session: service.hold(session, self.owner.organization_id, self._id(job), amount), refused)
        if refused is None:
            self.model.held[job] = amount

    @rule(job=NAMES, amount=AMOUNTS)
    def capture_above_the_hold(self, job: str, amount: int) -> None:
        open_hold = self.model.held.get(job, 0) if job not in self.model.charged else 0
        charge = open_hold + amount + 1
        if charge == self.model.charged.get(job):
            return
        self._do(
            lambda session: service.capture(session, self.owner.organization_id, self._id(job), charge), ConflictError
        )

    @rule(job=NAMES, used=AMOUNTS)
    def settle(self, job: str, used: int) -> None:
        self._do(lambda session: service.settle(session, self.owner.organization_id, self._id(job), used), None)
        if job in self.model.held:
            self.model.charged.setdefault(job, min(used, self.model.held[job]))

    @rule(job=NAMES, reference=NAMES, amount=AMOUNTS)
    def refund(self, job: str, reference: str, amount: int) -> None:
        known = self.model.refunds.get((job, reference))
        if not self.model.charged.get(job):
            refused: type[TunewrightError] | None = NotFoundError
        elif known is not None:
            refused = ConflictError if known != amount else None
        else:
            refused = None if 0 < amount <= self.model.left(job) else InvalidRequestError
        self._do(lambda session: service.refund(session, self._id(job), amount, reference=reference), refused)
        if refused is None:
            self.model.refunds[job, reference] = amount

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        with self.database.read() as session:
            assert service.balance(session, self.owner.organization_id) == self.model.balance
        missing = "credits were moved for a job that does not exist"
        assert [fault for fault in prove(self.database).faults if fault.problem != missing] == []

    def _do(self, work, refused) -> None:
        if refused is None:
            self.database.run(work)
            return
        with pytest.raises(refused):
            self.database.run(work)

    def _id(self, name: str) -> str:
        return f"{name}-{self.owner.organization_id}"


def test_books_agree_with_the_model(database: Database) -> None:
    machine = type("OpenBooks", (Books,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.fixture
def owner(database: Database) -> Owner:
    """An organization with 100 credits."""
    return open_organization(database, 100)


def test_every_verb_is_safe_to_repeat(database: Database, owner: Owner) -> None:
    organization_id = owner.organization_id
    verbs = [
        lambda session: service.grant(session, organization_id, 7, idempotency_key="seven"),
        lambda session: service.hold(session, organization_id, "ftjob-1", 40),
        lambda session: service.capture(session, organization_id, "ftjob-1", 30),
        lambda session: service.release(session, organization_id, "ftjob-1"),
        lambda session: service.refund(session, "ftjob-1", 10, reference="sorry"),
        lambda session: service.refund(session, "ftjob-1"),
    ]
    for verb in verbs:
        first = database.run(verb)
        assert database.run(verb).id == first.id
    for verb in verbs:
        database.run(verb)
    with database.read() as session:
        assert service.balance(session, organization_id) == Balance(107, 0)
        assert len(service.list_transactions(session, organization_id, after=None, limit=100).rows) == 7


def test_a_capture_above_the_hold_is_refused(database: Database, owner: Owner) -> None:
    with database.transaction() as session:
        service.hold(session, owner.organization_id, "ftjob-1", 40)
        with pytest.raises(ConflictError, match="40 are held"):
            service.capture(session, owner.organization_id, "ftjob-1", 41)
        assert service.settle(session, owner.organization_id, "ftjob-1", 1000) == 40
        assert service.balance(session, owner.organization_id) == Balance(60, 0)


def test_a_hold_resolves_once(database: Database, owner: Owner) -> None:
    with database.transaction() as session:
        service.hold(session, owner.organization_id, "ftjob-1", 40)
        assert service.settle(session, owner.organization_id, "ftjob-1", 0) == 0
        assert service.settle(session, owner.organization_id, "ftjob-1", 30) == 0
        with pytest.raises(ConflictError, match="0 are held"):
            service.capture(session, owner.organization_id, "ftjob-1", 1)
        assert service.balance(session, owner.organization_id) == Balance(100, 0)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([("available", 5)], "two entries"),
        ([("available", 5), ("grants", -4)], "two entries"),
        ([("available", 5), ("grants", -5), ("grants", 0)], "two entries"),
        ([], "two entries"),
        ([("available", -101), ("grants", 101)], "below zero"),
    ],
    ids=["one side", "a sum of one", "three sides", "no side", "an overdrawn account"],
)
def test_the_database_refuses_what_does_not_add_up(
    database: Database, owner: Owner, entries: list[tuple[str, int]], problem: str
) -> None:
    accounts = {"available": f"acct_{owner.organization_id}_available", "grants": "acct_system_grants"}

    def book(session: Session) -> None:
        for number, (account, amount) in enumerate(entries):
            session.execute(
                text("insert into ledger_entries values (:id, 'txn_x', :account, :amount)"),
                {"id": f"entry_{number}", "account": accounts[account], "amount": amount},
            )
        session.execute(
            text(
                "insert into ledger_transactions (id, kind, organization_id, idempotency_key, amount_credits, "
                "created_at) values ('txn_x', 'grant', :organization_id, 'x', 5, :now)"
            ),
            {"organization_id": owner.organization_id, "now": utc_now().replace(tzinfo=None)},
        )

    with pytest.raises(DBAPIError, match=problem):
        database.run(book)
    assert prove(database).faults == ()


def test_the_database_refuses_entries_without_or_behind_their_transaction(database: Database, owner: Owner) -> None:
    with database.read() as session:
        closed = service.list_transactions(session, owner.organization_id, after=None, limit=1).rows[0].id
    for transaction_id, problem in ((closed, "closed"), ("txn_none", "(?i)foreign key")):
        with pytest.raises(DBAPIError, match=problem), database.transaction() as session:
            session.execute(
                text("insert into ledger_entries values ('entry_x', :transaction, 'acct_system_grants', 0)"),
                {"transaction": transaction_id},
            )


def test_a_code_says_why_it_gives_nothing(database: Database, owner: Owner) -> None:
    with database.transaction() as session:
        codes.create_code(session, "old", 10, expires_at=utc_now())
        codes.create_code(session, "mine", 10)
        codes.create_code(session, "gone", 10)
        codes.disable_code(session, " Gone")
        assert codes.redeem(session, owner.organization_id, " mine\t").balance == Balance(110, 0)
        for code, kind, name in [
            ("nothing", NotFoundError, "code_unknown"),
            ("gone", NotFoundError, "code_unknown"),
            ("old", InvalidRequestError, "code_expired"),
            ("MINE", ConflictError, "code_already_redeemed"),
        ]:
            with pytest.raises(kind) as raised:
                codes.redeem(session, owner.organization_id, code)
            assert raised.value.code == name
        codes.redeem_for_job(session, owner.organization_id, "mine")
        codes.disable_code(session, "mine")
        codes.redeem_for_job(session, owner.organization_id, "mine")
        assert service.balance(session, owner.organization_id) == Balance(110, 0)


def test_a_single_use_code_that_another_redeemed_is_no_free_pass_for_a_job(database: Database, owner: Owner) -> None:
    other = open_organization(database)
    with database.transaction() as session:
        codes.create_code(session, "once", 10, max_redemptions=1)
        codes.redeem(session, other.organization_id, "once")
        with pytest.raises(ConflictError) as raised:
            codes.redeem_for_job(session, owner.organization_id, "once")
        assert raised.value.code == "code_already_redeemed"


BREAKAGES = {
    "an entry was changed": (
        "update ledger_entries set amount_credits = amount_credits + 1 where account_id like '%_held'",
        ["has 2 entries with the sum 1", "the balance is 41; its jobs hold 40", "the entries sum to 1"],
    ),
    "a transaction was deleted": (
        "delete from ledger_transactions where kind = 'hold'",
        ["belongs to no transaction", "the job has no hold", "its jobs hold 0"],
    ),
    "a job forgot its end": ("update jobs set status = 'succeeded'", ["still held for a job that is succeeded"]),
    "a job shows another price": ("update jobs set quote_credits = 39", ["held for a quote of 39"]),
    "a job is gone": ("delete from jobs", ["a job that does not exist"]),
    "an entry moved": (
        "update ledger_entries set account_id = 'acct_system_grants' where account_id like '%_held'",
        ["a hold does not move 40 credits on acct_system_grants"],
    ),
    "a redemption is gone": ("delete from code_redemptions", ["matches no redemption"]),
    "a code was redeemed too often": ("update credit_codes set max_redemptions = 0", ["more than it allows"]),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_proof_says_where_the_books_are_broken(
    database: Database, owner: Owner, tmp_path: Path, breakage: str
) -> None:
    with database.transaction() as session:
        codes.create_code(session, "welcome", 5, max_redemptions=9)
        codes.redeem(session, owner.organization_id, "welcome")
        plan = save_plan(session, owner, 40)
        job = create_job(session, open_runtime(database, tmp_path), owner, plan.id)
        assert job.status is JobStatus.QUEUED
    assert prove(database).faults == ()
    change, problems = BREAKAGES[breakage]
    _change_behind_its_back(database, change)
    found = [f"{fault.where}: {fault.problem}" for fault in prove(database).faults]
    for problem in problems:
        assert any(problem in line for line in found), found


def _change_behind_its_back(database: Database, change: str) -> None:
    """Change rows as someone would who has the database to themselves: no triggers, no foreign keys."""
    if database.engine.dialect.name == "postgresql":
        with database.engine.begin() as connection:
            connection.execute(text("set local session_replication_role = replica"))
            connection.execute(text(change))
        return
    file = sqlite3.connect(str(database.engine.url.database))
    for (name,) in file.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        file.execute(f"drop trigger {name}")
    file.execute(change)
    file.commit()
    file.close()
