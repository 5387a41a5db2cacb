"""Plans that no job uses are forgotten, and there may only be so many, on both databases."""

from datetime import timedelta
from pathlib import Path

import pytest

from core.db.base import utc_now
from core.db.session import Database
from core.plans import idle, queries
from core.plans.models import Plan
from tests.integration.core.books import create_job, open_organization, open_runtime, save_plan


def test_idle_plans_are_forgotten_and_others_stay(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "FORGOTTEN_AT_ONCE", 2)
    owner, runtime = open_organization(database, credits_granted=100), open_runtime(database, tmp_path)
    with database.transaction() as session:
        old = [save_plan(session, owner, 10) for _ in range(5)]
        used, fresh = save_plan(session, owner, 10), save_plan(session, owner, 10)
        create_job(session, runtime, owner, used.id)
        for plan in (*old, used):
            plan.expires_at = utc_now() - timedelta(seconds=runtime.settings.plan_retention_seconds + 60)
    with database.read() as session:
        assert queries.count_idle(session, owner.organization_id) == 6
    forgotten = []
    while count := database.run(lambda session: idle.forget_idle(session, runtime.settings)):
        forgotten.append(count)
    assert forgotten == [2, 2, 1]
    with database.read() as session:
        assert {plan.id for plan in session.query(Plan)} == {used.id, fresh.id}
