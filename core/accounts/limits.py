"""What an organization may have at once: its own limits, or the service's where it has none."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import Organization
from core.audit import service as audit
from core.audit.models import AuditType
from core.errors import LimitReachedError, NotFoundError
from core.settings import Settings


@dataclass(frozen=True)
class Limits:
    """The limits in force for an organization."""

    running_jobs: int
    queued_jobs: int
    storage_bytes: int
    upload_bytes: int
    files: int
    plans: int


def limits_of(session: Session, settings: Settings, organization_id: str) -> Limits:
    """The organization's limits."""
    return _limits(session.get_one(Organization, organization_id), settings)


def lock_limits(session: Session, settings: Settings, organization_id: str) -> Limits:
    """As `limits_of`, with the organization's row held, so that what is counted next stays true until the commit."""
    return _limits(queries.lock_organization(session, organization_id), settings)


def set_limits(session: Session, organization_id: str, changes: dict[str, int | None]) -> Organization:
    """Give an organization limits of its own; None puts the service's back. Raises NotFoundError."""
    organization = session.get(Organization, organization_id)
    if organization is None:
        raise NotFoundError(f"No organization {organization_id!r}.", code="organization_not_found")
    for name, value in changes.items():
        setattr(organization, f"max_{name}", value)
    session.flush()
    audit.record(
        session,
        AuditType.RATE_LIMIT_UPDATED,
        organization_id=organization_id,
        object_id=organization_id,
        limits=changes,
    )
    return organization


def check_limit(name: str, wanted: int, limit: int, advice: str) -> None:
    """Raises LimitReachedError, naming the limit, where `wanted` would be above it."""
    if wanted > limit:
        raise LimitReachedError(
            f"This organization's limit {name} is {limit:,}; this would make it {wanted:,}. {advice}",
            code=f"{name}_limit",
        )


def _limits(organization: Organization, settings: Settings) -> Limits:
    return Limits(
        running_jobs=_or(organization.max_running_jobs, settings.max_running_jobs),
        queued_jobs=_or(organization.max_queued_jobs, settings.max_queued_jobs),
        storage_bytes=_or(organization.max_storage_bytes, settings.max_storage_bytes),
        upload_bytes=min(_or(organization.max_upload_bytes, settings.max_upload_bytes), settings.max_upload_bytes),
        files=settings.max_files,
        plans=settings.max_plans,
    )


def _or(own: int | None, services: int) -> int:
    return services if own is None else own
