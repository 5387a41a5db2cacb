"""Tables of organizations, users, API keys, browser sessions and one-time sign-in links."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, EnumText, Id, utc_now


class Scope(StrEnum):
    """What a key may do. Each includes the one before."""

    READ = "read"  # look at what is there
    WRITE = "write"  # and change it: upload, run, redeem
    ADMIN = "admin"  # and administer the installation; only an administrator's keys

    def includes(self, other: "Scope") -> bool:
        """Whether this scope allows what `other` allows."""
        ranks = list(Scope)
        return ranks.index(self) >= ranks.index(other)


class Organization(Base):
    """What owns files, jobs, models and credits. A limit of its own stands in place of the service's setting."""

    __tablename__ = "organizations"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    max_running_jobs: Mapped[int | None]
    max_queued_jobs: Mapped[int | None]
    max_storage_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_upload_bytes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class User(Base):
    """A person. The embedded service has one, who signs in by link."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    email: Mapped[str | None] = mapped_column(String(320), unique=True)
    password_hash: Mapped[str | None] = mapped_column(String(400))
    disabled_at: Mapped[datetime | None]  # since then nobody signs in as this user, and no key of theirs works
    is_admin: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ApiKey(Base):
    """A bearer token. Only its hash is kept; `prefix` is what lists show.

    A key that was made with another one ends with it: it expires no later, and is revoked together with it.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    parent_id: Mapped[str | None] = mapped_column(Id, index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(20))
    secret_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scope: Mapped[Scope] = mapped_column(EnumText(Scope, 10), default=Scope.WRITE, server_default=Scope.WRITE.value)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class BrowserSession(Base):
    """A signed-in browser; the cookie holds the token, this row its hash."""

    __tablename__ = "browser_sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class SignInLink(Base):
    """A link that signs its bearer in, once."""

    __tablename__ = "sign_in_links"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id"))
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class HubToken(Base):
    """An organization's token for the model hub, encrypted (core.accounts.hub_tokens)."""

    __tablename__ = "hub_tokens"

    organization_id: Mapped[str] = mapped_column(ForeignKey("organizations.id"), primary_key=True)
    sealed: Mapped[str] = mapped_column(String(2000))
    hint: Mapped[str] = mapped_column(String(4))  # its last characters
    hub_account: Mapped[str | None] = mapped_column(String(200))  # whose it is; None: the hub did not answer then
    set_at: Mapped[datetime] = mapped_column(default=utc_now)
