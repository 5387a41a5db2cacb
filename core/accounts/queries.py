"""SQL of accounts."""

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.accounts.models import ApiKey, BrowserSession, SignInLink, User


def first_user(session: Session) -> User | None:
    """The oldest user: the owner of an embedded service."""
    return session.scalars(select(User).order_by(User.id).limit(1)).first()


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


def touch_key(session: Session, key_id: str, now: datetime) -> None:
    """Note that the key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))


def session_user(session: Session, token_hash: str, now: datetime) -> User | None:
    """The user whose browser holds this session, unless it has expired."""
    return session.scalars(
        select(User)
        .join(BrowserSession, BrowserSession.user_id == User.id)
        .where(BrowserSession.token_hash == token_hash, BrowserSession.expires_at > now)
    ).first()


def spend_link(session: Session, token_hash: str, now: datetime) -> str | None:
    """Mark an unused, unexpired link as used and return its user; None where there is no such link."""
    return session.execute(
        update(SignInLink)
        .where(SignInLink.token_hash == token_hash, SignInLink.used_at.is_(None), SignInLink.expires_at > now)
        .values(used_at=now)
        .returning(SignInLink.user_id)
    ).scalar_one_or_none()
