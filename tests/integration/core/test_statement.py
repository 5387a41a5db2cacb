"""The statement: every movement with the balance behind it, page by page."""

import itertools

from core.db.session import Database
from core.ledger import service
from core.ledger.service import StatementLine
from tests.integration.core.books import open_organization


def test_each_line_leads_to_the_next_and_the_last_to_the_balance(database: Database) -> None:
    owner, other = open_organization(database), open_organization(database)
    mine = owner.organization_id
    with database.transaction() as session:
        service.grant(session, mine, 1000, idempotency_key="grant:1")
        service.grant(session, other.organization_id, 5, idempotency_key="grant:2")
        service.hold(session, mine, "ftjob-a", 300)
        service.settle(session, mine, "ftjob-a", 120)
        service.refund(session, "ftjob-a", 20)
        service.hold(session, mine, "ftjob-b", 50)

    with database.read() as session:
        lines: list[StatementLine] = []
        after = None
        while True:
            page = service.statement(session, mine, after=after, limit=2)
            lines += page.rows
            if not page.has_more:
                break
            after = lines[-1].transaction.id
        balance = service.balance(session, mine)

    assert sorted(line.change_credits for line in lines) == [-300, -50, 0, 20, 180, 1000]
    assert lines[0].balance_credits == balance.available_credits == 850
    for newer, older in itertools.pairwise(lines):
        assert newer.balance_credits - newer.change_credits == older.balance_credits
    assert lines[-1].balance_credits == lines[-1].change_credits == 1000


def test_there_is_nothing_before_the_first_movement(database: Database) -> None:
    owner = open_organization(database)
    with database.read() as session:
        assert service.statement(session, owner.organization_id, after=None, limit=5).rows == ()
