"""Plans that no job uses: there may be so many of them, and they are forgotten some time after their quotes."""

from datetime import timedelta

from sqlalchemy.orm import Session

from core.accounts.limits import check_limit, limits_of
from core.db.base import utc_now
from core.plans import queries
from core.settings import Settings

FORGOTTEN_AT_ONCE = 500  # in one transaction


def check_room(session: Session, settings: Settings, organization_id: str) -> None:
    """Raises LimitReachedError where the organization may have no further plan."""
    limits = limits_of(session, settings, organization_id)
    advice = "Those that no job uses are forgotten by themselves; try again later."
    check_limit("plans", queries.count_idle(session, organization_id) + 1, limits.plans, advice)


def forget_idle(session: Session, settings: Settings) -> int:
    """Drop some of the plans whose quotes ended long ago and that no job uses; returns how many."""
    expired_before = utc_now() - timedelta(seconds=settings.plan_retention_seconds)
    return queries.delete_idle(session, expired_before=expired_before, limit=FORGOTTEN_AT_ONCE)
