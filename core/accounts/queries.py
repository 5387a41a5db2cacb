"""SQL of accounts."""

from datetime import datetime

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from core.accounts.models import ApiKey, BrowserSession, HubToken, Organization, SignInLink, User

_LITERAL = str.maketrans({character: f"\\{character}" for character in "\\%_"})  # in a pattern of LIKE


def first_user(session: Session) -> User | None:
    """The oldest user: the owner of an embedded service."""
    return session.scalars(select(User).order_by(User.id).limit(1)).first()


def user_by_email(session: Session, email: str) -> User | None:
    """The user with this (lower-case) e-mail address."""
    return session.scalars(select(User).where(User.email == email)).first()


def users(session: Session) -> list[tuple[User, Organization]]:
    """Every user with their organization, oldest first."""
    query = select(User, Organization).join(Organization, Organization.id == User.organization_id).order_by(User.id)
    return [(user, organization) for user, organization in session.execute(query)]


def find_users(session: Session, words: str, limit: int) -> list[tuple[User, Organization]]:
    """The newest users whose name, e-mail address or organization contains `words`."""
    pattern = f"%{words.translate(_LITERAL)}%"
    query = (
        select(User, Organization)
        .join(Organization, Organization.id == User.organization_id)
        .where(
            or_(
                User.name.ilike(pattern, escape="\\"),
                User.email.ilike(pattern, escape="\\"),
                Organization.id.ilike(pattern, escape="\\"),
            )
        )
        .order_by(User.id.desc())
        .limit(limit)
    )
    return [(user, organization) for user, organization in session.execute(query)]


def has_administrator(session: Session, organization_id: str) -> bool:
    """Whether someone of the organization administers the installation."""
    query = select(User.id).where(User.organization_id == organization_id, User.is_admin, User.disabled_at.is_(None))
    return session.scalar(query.limit(1)) is not None


def hub_tokens(session: Session) -> list[HubToken]:
    """All hub tokens, their rows held until the transaction ends."""
    return list(session.scalars(select(HubToken).with_for_update()))


def lock_organization(session: Session, organization_id: str) -> Organization:
    """The organization, its row held until the transaction ends; others may still refer to it meanwhile."""
    query = select(Organization).where(Organization.id == organization_id).with_for_update(key_share=True)
    return session.scalars(query).one()


def api_key_by_hash(session: Session, secret_hash: str) -> tuple[ApiKey, User] | None:
    """The key and its user."""
    row = session.execute(
        select(ApiKey, User).join(User, User.id == ApiKey.user_id).where(ApiKey.secret_hash == secret_hash)
    ).first()
    return (row[0], row[1]) if row else None


def keys_of(session: Session, organization_id: str) -> list[ApiKey]:
    """All keys of an organization, newest first."""
    query = select(ApiKey).where(ApiKey.organization_id == organization_id).order_by(ApiKey.id.desc())
    return list(session.scalars(query))


def keys_made_with(session: Session, key_id: str) -> list[ApiKey]:
    """The keys that were made with this one."""
    return list(session.scalars(select(ApiKey).where(ApiKey.parent_id == key_id)))


def touch_key(session: Session, key_id: str, now: datetime) -> None:
    """Note that the key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))


def session_user(session: Session, token_hash: str, now: datetime) -> User | None:
    """The user whose browser holds this session, unless it has expired."""
    return session.scalars(
        select(User)
        .join(BrowserSession, BrowserSession.user_id == User.id)
        .where(BrowserSession.token_hash == token_hash, BrowserSession.expires_at > now, User.disabled_at.is_(None))
    ).first()


def end_session(session: Session, token_hash: str) -> None:
    """Forget a browser session."""
    session.execute(delete(BrowserSession).where(BrowserSession.token_hash == token_hash))


def end_sessions_of(session: Session, user_id: str, but: str | None) -> None:
    """Forget a user's browser sessions, except the one with this hash."""
    statement = delete(BrowserSession).where(BrowserSession.user_id == user_id)
    session.execute(statement if but is None else statement.where(BrowserSession.token_hash != but))


def link_works(session: Session, token_hash: str, now: datetime) -> bool:
    """Whether the link is unused and unexpired."""
    query = select(SignInLink.user_id).where(
        SignInLink.token_hash == token_hash, SignInLink.used_at.is_(None), SignInLink.expires_at > now
    )
    return session.scalar(query) is not None


def spend_link(session: Session, token_hash: str, now: datetime) -> str | None:
    """Mark an unused, unexpired link as used and return its user; None where there is no such link."""
    return session.execute(
        update(SignInLink)
        .where(SignInLink.token_hash == token_hash, SignInLink.used_at.is_(None), SignInLink.expires_at > now)
        .values(used_at=now)
        .returning(SignInLink.user_id)
    ).scalar_one_or_none()
