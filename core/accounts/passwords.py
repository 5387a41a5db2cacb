"""Signing up and in with a password, kept as an argon2id hash.

Hashing takes tens of milliseconds on purpose, so it happens outside any transaction.
"""

import re
from dataclasses import dataclass
from functools import cache, partial

from pwdlib import PasswordHash
from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import Organization, User
from core.accounts.service import (
    get_user,
    note_change,
    open_browser_session,
    refuse_sign_in,
    sign_out_everywhere,
)
from core.audit import service as audit
from core.audit.models import AuditType
from core.db.upsert import insert_or_ignore
from core.errors import ConflictError, InvalidRequestError, PermissionDeniedError, WrongPasswordError
from core.ids import new_id
from core.runtime import Runtime
from core.throttle.service import HOUR, Rate

SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 200
LONGEST_NAME = 200
LONGEST_EMAIL = 320
ADDRESSES_OF_ONE_ACCOUNT = 10  # from which it may be guessed at once, each as often as allowed
_EMAIL = re.compile(r"[^@\s\x00]{1,64}@[^@\s\x00]{1,255}")


@dataclass(frozen=True)
class Registration:
    """What a person gives to get an account."""

    email: str
    password: str
    name: str


@cache
def _hashing() -> PasswordHash:
    return PasswordHash.recommended()


@cache
def _nobody() -> str:
    """A hash that no password has, so that an unknown address takes as long as a wrong password."""
    return _hashing().hash(new_id("nobody-"))


def sign_up(runtime: Runtime, registration: Registration, address: str) -> str:
    """Make an account with an organization of its own and sign in; returns the token of a browser session.

    Raises PermissionDeniedError where signing up is closed, InvalidRequestError, ConflictError where the e-mail address
    has an account, RateLimitError.
    """
    if not runtime.settings.sign_up_open:
        raise PermissionDeniedError(
            "Signing up is closed here. Ask whoever runs this service for an account.", code="sign_up_closed"
        )
    runtime.throttle.take(Rate("sign-ups from this address", runtime.settings.sign_in_failures_per_hour, HOUR), address)
    user_id = register(runtime, registration)
    return runtime.database.run(
        lambda session: open_browser_session(session, user_id, runtime.settings.session_seconds)
    )


def register(runtime: Runtime, registration: Registration) -> str:
    """Make an account, open or not; returns the user's id. Raises InvalidRequestError and ConflictError."""
    email, name = _checked(registration.email, registration.name)
    check_password(registration.password)
    password_hash = _hashing().hash(registration.password)
    return runtime.database.run(lambda session: _create(session, email, name, password_hash))


def invite(session: Session, email: str, name: str) -> str:
    """Make an account without a password yet, for someone who gets a sign-in link; returns the user's id.

    Raises InvalidRequestError and ConflictError.
    """
    return _create(session, *_checked(email, name), password_hash=None)


def sign_in(runtime: Runtime, email: str, password: str, address: str) -> str:
    """Sign in; returns the token of a browser session.

    Raises WrongPasswordError, RateLimitError, and PermissionDeniedError for a disabled account.

    Wrong passwords are counted by account and address together, so that nobody locks out an account from elsewhere,
    and by address; of an account from all addresses, only so many that guessing with many machines stays hopeless.
    """
    user_id = _guessed(runtime, email.strip().lower(), password, address)
    return runtime.database.run(
        lambda session: open_browser_session(session, user_id, runtime.settings.session_seconds)
    )


def change_password(runtime: Runtime, user_id: str, current: str, new: str, session_token: str, address: str) -> None:
    """Give a user another password, or a first one, and end their other browser sessions.

    Raises WrongPasswordError, RateLimitError and InvalidRequestError, also for a user without an e-mail address.
    """
    with runtime.database.read() as session:
        user = get_user(session, user_id)
    if user.email is None:
        raise InvalidRequestError("This account has no e-mail address to sign in with; it signs in by link.")
    if user.password_hash is not None:
        _guessed(runtime, user.email, current, address)
    check_password(new)
    password_hash = _hashing().hash(new)

    def change(session: Session) -> None:
        changed = get_user(session, user_id)
        changed.password_hash = password_hash
        note_change(session, changed, change="password")
        sign_out_everywhere(session, user_id, but=session_token)

    runtime.database.run(change)


def _guessed(runtime: Runtime, email: str, password: str, address: str) -> str:
    amount = runtime.settings.sign_in_failures_per_hour
    with runtime.throttle.failures(
        WrongPasswordError,
        (Rate("wrong passwords for this account from this address", amount, HOUR), f"{email} {address}"),
        (Rate("wrong passwords from this address", amount, HOUR), address),
        (Rate("wrong passwords for this account", amount * ADDRESSES_OF_ONE_ACCOUNT, HOUR), email),
    ):
        try:
            return _known(runtime, email, password)
        except (WrongPasswordError, PermissionDeniedError) as error:
            runtime.database.run(partial(_note_failure, email=email, reason=error.code))
            raise


def _note_failure(session: Session, *, email: str, reason: str) -> None:
    user = queries.user_by_email(session, email)
    audit.record(
        session,
        AuditType.LOGIN_FAILED,
        organization_id=user.organization_id if user is not None else None,
        object_id=user.id if user is not None else None,
        email=email[:LONGEST_EMAIL],
        reason=reason,
    )


def _known(runtime: Runtime, email: str, password: str) -> str:
    with runtime.database.read() as session:
        user = queries.user_by_email(session, email)
    password_hash = user.password_hash if user is not None and user.password_hash else _nobody()
    is_right = _hashing().verify(password[:LONGEST_PASSWORD], password_hash)
    if user is None or not is_right:
        refuse_sign_in("password", "unknown" if user is None else "wrong_password", user.id if user else None)
        raise WrongPasswordError("The e-mail address or the password is wrong.")
    if user.disabled_at is not None:
        refuse_sign_in("password", "account_disabled", user.id)
        raise PermissionDeniedError("This account is disabled. Ask whoever runs this service.", code="account_disabled")
    return user.id


def _checked(email: str, name: str) -> tuple[str, str]:
    email, name = email.strip().lower(), name.strip()
    if not _EMAIL.fullmatch(email):
        raise InvalidRequestError("That is not an e-mail address.", param="email")
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidRequestError(f"A name has 1 to {LONGEST_NAME} printable characters.", param="name")
    return email, name


def check_password(password: str) -> None:
    """Raises InvalidRequestError for a password of a length that is not taken."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InvalidRequestError(
            f"A password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters; this one has {len(password)}.",
            param="password",
        )


def _create(session: Session, email: str, name: str, password_hash: str | None) -> str:
    organization = Organization(id=new_id("org-"), name=name)
    session.add(organization)
    session.flush()
    user_id = new_id("user-")
    made = insert_or_ignore(
        session,
        User,
        id=user_id,
        organization_id=organization.id,
        name=name,
        email=email,
        password_hash=password_hash,
        is_admin=False,
    )
    if not made:
        raise ConflictError("There is an account with this e-mail address already. Sign in.", code="email_taken")
    audit.record(session, AuditType.USER_ADDED, organization_id=organization.id, object_id=user_id, email=email)
    return user_id
