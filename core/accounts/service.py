"""Who is calling: API keys, one-time links and browser sessions."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import ApiKey, BrowserSession, Organization, Scope, SignInLink, User
from core.accounts.tokens import API_KEY_PREFIX, SHOWN_CHARACTERS, hash_token, new_token
from core.acting import Person
from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError, PermissionDeniedError
from core.idempotency.service import CreateRequest, once
from core.ids import new_id

LAST_USED_RESOLUTION = timedelta(minutes=1)

log = structlog.get_logger()


@dataclass(frozen=True)
class Actor:
    """Who a request acts for, from where, and what it may do.

    `credential` tells callers apart where retries are recognised and requests are counted.
    """

    organization_id: str
    user_id: str
    is_admin: bool
    credential: str
    scope: Scope = Scope.WRITE
    address: str = "unknown"
    key_prefix: str | None = None  # of the API key, as lists show it; None: a browser's session
    email: str | None = None


@dataclass(frozen=True)
class NewApiKey:
    """A key just made, with the secret that is shown this once."""

    key: ApiKey
    secret: str


@dataclass(frozen=True)
class Account:
    """A caller and the organization it acts for."""

    organization: Organization
    user: User


def ensure_owner(session: Session) -> User:
    """The owner of this installation, made on the first start."""
    owner = queries.first_user(session)
    if owner is None:
        organization = Organization(id=new_id("org-"), name="Personal")
        owner = User(id=new_id("user-"), organization_id=organization.id, name="Owner", is_admin=True)
        session.add(organization)
        session.flush()
        session.add(owner)
        session.flush()
    return owner


def create_api_key(
    session: Session, user: User, name: str, *, scope: Scope = Scope.WRITE, expires_at: datetime | None = None
) -> NewApiKey:
    """A new key for the user. Raises PermissionDeniedError and InvalidRequestError."""
    if scope is Scope.ADMIN and not user.is_admin:
        raise PermissionDeniedError("Only an administrator can have a key with the scope 'admin'.", param="scope")
    if expires_at is not None and expires_at <= utc_now():
        raise InvalidRequestError("The key would have expired already.", param="expires_at")
    secret = new_token(API_KEY_PREFIX)
    key = ApiKey(
        id=new_id("key_"),
        organization_id=user.organization_id,
        user_id=user.id,
        name=name,
        prefix=secret[:SHOWN_CHARACTERS],
        secret_hash=hash_token(secret),
        scope=scope,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    audit.record(
        session,
        AuditType.API_KEY_CREATED,
        organization_id=key.organization_id,
        object_id=key.id,
        name=name,
        prefix=key.prefix,
        scope=scope.value,
    )
    return NewApiKey(key, secret)


def create_api_key_for(
    session: Session, actor: Actor, name: str, *, scope: Scope = Scope.WRITE, expires_at: datetime | None = None
) -> NewApiKey:
    """A new key for the caller, which may do no more than the caller, and no longer where that is a key itself.

    Raises what `create_api_key` raises.
    """
    require_scope(actor, scope)
    parent = session.get(ApiKey, actor.credential)  # a browser session's credential is none
    if parent is not None and parent.expires_at is not None:
        if expires_at is not None and expires_at > parent.expires_at:
            raise InvalidRequestError(
                f"The key that makes it expires at {parent.expires_at:%Y-%m-%d %H:%M} UTC; a key made with it cannot "
                "last longer.",
                param="expires_at",
            )
        expires_at = expires_at or parent.expires_at
    new = create_api_key(session, session.get_one(User, actor.user_id), name, scope=scope, expires_at=expires_at)
    new.key.parent_id = parent.id if parent is not None else None
    return new


def require_scope(actor: Actor, scope: Scope) -> None:
    """Raises PermissionDeniedError where the caller's key may not do this."""
    if not actor.scope.includes(scope):
        raise PermissionDeniedError(
            f"This needs the scope {scope.value!r}; yours is {actor.scope.value!r}. Use a key that has it.",
            code="insufficient_scope",
        )


def create_api_key_once(
    session: Session,
    actor: Actor,
    name: str,
    request: CreateRequest,
    *,
    scope: Scope = Scope.WRITE,
    expires_at: datetime | None = None,
) -> NewApiKey:
    """As `create_api_key_for`; a retried create gets the first key with a fresh secret, because nobody saw the first.

    Raises ConflictError where the key was used since: whoever has its secret must keep it.
    """
    made: list[NewApiKey] = []

    def make() -> str:
        made.append(create_api_key_for(session, actor, name, scope=scope, expires_at=expires_at))
        return made[0].key.id

    key = session.get_one(ApiKey, once(session, request, make))
    if made:
        return made[0]
    if key.last_used_at is not None or key.revoked_at is not None:
        raise ConflictError(
            f"The API key {key.prefix}… was made by this request and used since; its secret cannot be shown again. "
            "Create another key.",
            code="api_key_in_use",
        )
    secret = new_token(API_KEY_PREFIX)
    key.prefix, key.secret_hash = secret[:SHOWN_CHARACTERS], hash_token(secret)
    return NewApiKey(key, secret)


def get_account(session: Session, actor: Actor) -> Account:
    """The caller and the organization it acts for."""
    return Account(session.get_one(Organization, actor.organization_id), session.get_one(User, actor.user_id))


def list_api_keys(session: Session, organization_id: str) -> list[ApiKey]:
    """The organization's keys, newest first; secrets are not among what is kept."""
    return queries.keys_of(session, organization_id)


def get_api_key(session: Session, organization_id: str, key_id: str) -> ApiKey:
    """A key of the organization. Raises NotFoundError."""
    key = session.get(ApiKey, key_id)
    if key is None or key.organization_id != organization_id:
        raise NotFoundError(f"No API key {key_id!r}.", code="api_key_not_found", param="key_id")
    return key


def revoke_api_key(session: Session, organization_id: str, key_id: str) -> ApiKey:
    """Make a key unusable from now on, and those made with it. Raises NotFoundError."""
    key = get_api_key(session, organization_id, key_id)
    now = utc_now()
    ending = [key]
    while ending:
        one = ending.pop()
        if one.revoked_at is None:
            one.revoked_at = now
            audit.record(
                session, AuditType.API_KEY_DELETED, organization_id=organization_id, object_id=one.id, prefix=one.prefix
            )
        ending += queries.keys_made_with(session, one.id)
    return key


def sign_out_everywhere(session: Session, user_id: str, *, but: str | None = None) -> None:
    """End every browser session of a user; the one with the token `but` stays."""
    queries.end_sessions_of(session, user_id, hash_token(but) if but is not None else None)


def disable_user(session: Session, user_id: str, *, by: str) -> User:
    """Let nobody sign in as this user, nor use a key of theirs, until enabled again. What they own stays.

    Raises NotFoundError, and ConflictError for an administrator who would lock themselves out.
    """
    if user_id == by:
        raise ConflictError("You cannot disable your own account.", code="own_account")
    user = get_user(session, user_id)
    user.disabled_at = user.disabled_at or utc_now()
    sign_out_everywhere(session, user_id)
    note_change(session, user, change="disabled")
    return user


def enable_user(session: Session, user_id: str) -> User:
    """Undo `disable_user`. Raises NotFoundError."""
    user = get_user(session, user_id)
    user.disabled_at = None
    note_change(session, user, change="enabled")
    return user


def note_change(session: Session, user: User, *, change: str) -> None:
    """Write down what was changed of a user."""
    audit.record(
        session, AuditType.USER_UPDATED, organization_id=user.organization_id, object_id=user.id, change=change
    )


def get_user(session: Session, user_id: str) -> User:
    """The user. Raises NotFoundError."""
    user = session.get(User, user_id)
    if user is None:
        raise NotFoundError(f"No account {user_id!r}.", code="account_not_found", param="user_id")
    return user


def authenticate_key(session: Session, secret: str) -> Actor:
    """The actor behind a bearer token. Raises AuthenticationError."""
    found = queries.api_key_by_hash(session, hash_token(secret))
    now = utc_now()
    if found is None:
        _refuse_key(secret[:SHOWN_CHARACTERS] if secret.startswith(API_KEY_PREFIX) else None, "unknown")
        raise AuthenticationError("Incorrect API key provided. Create one with `tunewright keys create`.")
    key, user = found
    if key.revoked_at is not None:
        _refuse_key(key.prefix, "revoked")
        raise AuthenticationError(f"The API key {key.prefix}… was revoked on {key.revoked_at:%Y-%m-%d}.")
    if key.expires_at is not None and key.expires_at <= now:
        _refuse_key(key.prefix, "expired")
        raise AuthenticationError(f"The API key {key.prefix}… expired on {key.expires_at:%Y-%m-%d}.")
    if user.disabled_at is not None:
        _refuse_key(key.prefix, "account_disabled")
        raise AuthenticationError("This account is disabled. Ask whoever runs this service.", code="account_disabled")
    scope = key.scope if key.scope is not Scope.ADMIN or user.is_admin else Scope.WRITE
    return Actor(
        key.organization_id,
        user.id,
        user.is_admin,
        credential=key.id,
        scope=scope,
        key_prefix=key.prefix,
        email=user.email,
    )


def _refuse_key(prefix: str | None, reason: str) -> None:
    """For tools that watch the log for guessing. What is no key of ours may be another service's, and is not shown."""
    log.warning("key_refused", key=prefix, reason=reason)


def note_key_use(session: Session, key_id: str) -> None:
    """Remember when a key was last used, to the minute: not a write per request."""
    key = session.get(ApiKey, key_id)
    now = utc_now()
    if key is not None and (key.last_used_at is None or now - key.last_used_at > LAST_USED_RESOLUTION):
        queries.touch_key(session, key_id, now)


def create_sign_in_link(session: Session, user: User, seconds: int) -> str:
    """The token of a link that signs the user in once."""
    token = new_token()
    expires_at = utc_now() + timedelta(seconds=seconds)
    session.add(SignInLink(token_hash=hash_token(token), user_id=user.id, expires_at=expires_at))
    audit.record(session, AuditType.SIGN_IN_LINK_CREATED, organization_id=user.organization_id, object_id=user.id)
    return token


def sign_in_url(base_url: str, token: str) -> str:
    """The link that signs its bearer in, once. `base_url` is where browsers reach the service."""
    return f"{base_url.rstrip('/')}/sign-in?token={token}"


def check_link(session: Session, token: str) -> None:
    """Raises PermissionDeniedError where a one-time link would not sign anyone in."""
    if not queries.link_works(session, hash_token(token), utc_now()):
        refuse_sign_in("link", "spent")
        raise _spent()


def sign_in_with_link(session: Session, token: str, seconds: int) -> str:
    """Spend a one-time link; returns the token of a new browser session. Raises PermissionDeniedError."""
    user_id = queries.spend_link(session, hash_token(token), utc_now())
    if user_id is None:
        refuse_sign_in("link", "spent")
        raise _spent()
    if get_user(session, user_id).disabled_at is not None:
        refuse_sign_in("link", "account_disabled", user_id)
        raise PermissionDeniedError("This account is disabled. Ask whoever runs this service.", code="account_disabled")
    return open_browser_session(session, user_id, seconds)


def refuse_sign_in(method: str, reason: str, user_id: str | None = None) -> None:
    """Say in the log that somebody could not sign in, for tools that watch it for guessing.

    What was typed is not shown: some people type their password where the address belongs.
    """
    log.warning("sign_in_failed", method=method, reason=reason, user=user_id)


def _spent() -> PermissionDeniedError:
    return PermissionDeniedError(
        "This link has expired: it signs one browser in, once, and only for a while. Ask whoever runs this service for "
        "a new one; `tunewright link` prints it.",
        code="sign_in_link_spent",
    )


def open_browser_session(session: Session, user_id: str, seconds: int) -> str:
    """Sign a browser in; returns the token that its cookie holds."""
    token = new_token()
    expires_at = utc_now() + timedelta(seconds=seconds)
    session.add(BrowserSession(token_hash=hash_token(token), user_id=user_id, expires_at=expires_at))
    user = get_user(session, user_id)
    audit.record(
        session,
        AuditType.LOGIN_SUCCEEDED,
        organization_id=user.organization_id,
        object_id=user_id,
        by=Person(user.id, user.email),
    )
    return token


def sign_out(session: Session, token: str) -> None:
    """End a browser session. Ending one that has ended is no error."""
    user = queries.session_user(session, hash_token(token), utc_now())
    if user is not None:
        audit.record(
            session,
            AuditType.LOGOUT_SUCCEEDED,
            organization_id=user.organization_id,
            object_id=user.id,
            by=Person(user.id, user.email),
        )
    queries.end_session(session, hash_token(token))


def authenticate_session(session: Session, token: str) -> Actor:
    """The actor behind a browser session's cookie. Raises AuthenticationError."""
    token_hash = hash_token(token)
    user = queries.session_user(session, token_hash, utc_now())
    if user is None:
        raise AuthenticationError("Your session has ended. Sign in again with a new link.", code="session_expired")
    scope = Scope.ADMIN if user.is_admin else Scope.WRITE
    return Actor(user.organization_id, user.id, user.is_admin, credential=token_hash, scope=scope, email=user.email)
