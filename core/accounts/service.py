"""Who is calling: API keys, one-time links and browser sessions."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import ApiKey, BrowserSession, Organization, Scope, SignInLink, User
from core.accounts.tokens import API_KEY_PREFIX, SHOWN_CHARACTERS, hash_token, new_token
from core.db.base import utc_now
from core.errors import AuthenticationError, ConflictError, InvalidRequestError, NotFoundError, PermissionDeniedError
from core.ids import new_id
from core.retries.service import CreateRequest, once

LAST_USED_RESOLUTION = timedelta(minutes=1)


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
    return NewApiKey(key, secret)


def create_api_key_for(
    session: Session, actor: Actor, name: str, *, scope: Scope = Scope.WRITE, expires_at: datetime | None = None
) -> NewApiKey:
    """A new key for the caller, which may do no more than the caller. Raises what `create_api_key` raises."""
    require_scope(actor, scope)
    return create_api_key(session, session.get_one(User, actor.user_id), name, scope=scope, expires_at=expires_at)


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


def revoke_api_key(session: Session, organization_id: str, key_id: str) -> ApiKey:
    """Make a key unusable from now on. Raises NotFoundError."""
    key = session.get(ApiKey, key_id)
    if key is None or key.organization_id != organization_id:
        raise NotFoundError(f"No API key {key_id!r}.", code="api_key_not_found", param="key_id")
    key.revoked_at = key.revoked_at or utc_now()
    return key


def authenticate_key(session: Session, secret: str) -> Actor:
    """The actor behind a bearer token. Raises AuthenticationError."""
    found = queries.api_key_by_hash(session, hash_token(secret))
    now = utc_now()
    if found is None:
        raise AuthenticationError("Incorrect API key provided. Create one with `tunewright keys create`.")
    key, user = found
    if key.revoked_at is not None:
        raise AuthenticationError(f"The API key {key.prefix}… was revoked on {key.revoked_at:%Y-%m-%d}.")
    if key.expires_at is not None and key.expires_at <= now:
        raise AuthenticationError(f"The API key {key.prefix}… expired on {key.expires_at:%Y-%m-%d}.")
    scope = key.scope if key.scope is not Scope.ADMIN or user.is_admin else Scope.WRITE
    return Actor(key.organization_id, user.id, user.is_admin, credential=key.id, scope=scope)


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
    return token


def check_link(session: Session, token: str) -> None:
    """Raises PermissionDeniedError where a one-time link would not sign anyone in."""
    if not queries.link_works(session, hash_token(token), utc_now()):
        raise _spent()


def sign_in_with_link(session: Session, token: str, seconds: int) -> str:
    """Spend a one-time link; returns the token of a new browser session. Raises PermissionDeniedError."""
    user_id = queries.spend_link(session, hash_token(token), utc_now())
    if user_id is None:
        raise _spent()
    return open_browser_session(session, user_id, seconds)


def _spent() -> PermissionDeniedError:
    return PermissionDeniedError(
        "This sign-in link was used already or has expired. Restart `tunewright up`, or run `tunewright link`, "
        "for a new one.",
        code="sign_in_link_spent",
    )


def open_browser_session(session: Session, user_id: str, seconds: int) -> str:
    """Sign a browser in; returns the token that its cookie holds."""
    token = new_token()
    expires_at = utc_now() + timedelta(seconds=seconds)
    session.add(BrowserSession(token_hash=hash_token(token), user_id=user_id, expires_at=expires_at))
    return token


def sign_out(session: Session, token: str) -> None:
    """End a browser session. Ending one that has ended is no error."""
    queries.end_session(session, hash_token(token))


def authenticate_session(session: Session, token: str) -> Actor:
    """The actor behind a browser session's cookie. Raises AuthenticationError."""
    token_hash = hash_token(token)
    user = queries.session_user(session, token_hash, utc_now())
    if user is None:
        raise AuthenticationError("Your session has ended. Sign in again with a new link.", code="session_expired")
    scope = Scope.ADMIN if user.is_admin else Scope.WRITE
    return Actor(user.organization_id, user.id, user.is_admin, credential=token_hash, scope=scope)
