"""The audit log: written with the deed or not at all, and never changed."""

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from core.accounts import service as accounts
from core.accounts.models import User
from core.acting import Acting, ActorKind, acting_as
from core.audit import service as audit
from core.audit.models import AuditLog, AuditType
from core.audit.queries import AuditFilter
from core.db.base import utc_now
from core.db.session import Database
from core.errors import ConflictError
from core.ids import new_id
from core.settings import Settings
from tests.people import add_user


def logged(database: Database, organization_id: str) -> list[AuditLog]:
    with database.read() as session:
        return list(audit.list_audit_logs(session, AuditFilter(organization_id), after=None, limit=100).rows)


def test_a_deed_and_its_record_stand_or_fall_together(database: Database) -> None:
    with database.transaction() as session:
        user = add_user(session)
    with pytest.raises(ConflictError, match="undone"):
        database.run(partial(_undone, user_id=user.id))
    assert logged(database, user.organization_id) == []
    who = Acting(ActorKind.COMMAND_LINE, name="ada")
    with acting_as(who), database.transaction() as session:
        key = accounts.create_api_key(session, session.get_one(User, user.id), "laptop").key
    (row,) = logged(database, user.organization_id)
    assert (row.type, row.object_id, row.actor_kind, row.actor_email) == (
        AuditType.API_KEY_CREATED,
        key.id,
        ActorKind.COMMAND_LINE,
        "ada",
    )
    assert row.details == {"name": "laptop", "prefix": key.prefix, "scope": "write"}


def _undone(session: Session, user_id: str) -> None:
    accounts.create_api_key(session, session.get_one(User, user_id), "never")
    raise ConflictError("undone")


@pytest.mark.parametrize("change", ["update audit_logs set actor_email = 'nobody'", "delete from audit_logs"])
def test_the_log_refuses_changes(database: Database, change: str) -> None:
    with database.transaction() as session:
        audit.record(session, AuditType.LOGIN_FAILED, organization_id=None, object_id=None, email="x@y.z")
    with database.engine.connect() as connection, pytest.raises(DBAPIError, match="append-only"):
        connection.execute(text(change))


def test_it_is_forgotten_no_sooner_than_the_setting_says(database: Database) -> None:
    ages = (400, 40, 1)
    with database.transaction() as session:
        for days in ages:
            then = utc_now() - timedelta(days=days)
            session.add(
                AuditLog(
                    id=new_id("audit_log-"),
                    type=AuditType.LOGIN_FAILED,
                    effective_at=then,
                    organization_id="org-1",
                    actor_kind=ActorKind.SYSTEM,
                )
            )
    assert database.run(partial(audit.forget_old, settings=Settings())) == 0, "for ever by default"
    year = Settings(audit_log_retention_seconds=365 * 86400)
    assert database.run(partial(audit.forget_old, settings=year)) == 1
    assert len(logged(database, "org-1")) == len(ages) - 1
