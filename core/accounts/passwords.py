"""Signing up and in with a password, kept as an argon2id hash.

Hashing takes tens of milliseconds on purpose, so it happens outside any transaction.
"""

import re
from dataclasses import dataclass
from functools import cache

from pwdlib import PasswordHash
from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import Organization, User
from core.accounts.service import open_browser_session
from core.db.upsert import insert_or_ignore
from core.errors import ConflictError, InvalidRequestError, PermissionDeniedError, WrongPasswordError
from core.ids import new_id
from core.runtime import Runtime
from core.throttle.service import HOUR, Rate

SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 200
LONGEST_NAME = 200
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
    email, name = _checked(registration)
    password_hash = _hashing().hash(registration.password)
    return runtime.database.run(lambda session: _create(session, email, name, password_hash))


def sign_in(runtime: Runtime, email: str, password: str, address: str) -> str:
    """Sign in; returns the token of a browser session. Raises WrongPasswordError and RateLimitError."""
    email, amount = email.strip().lower(), runtime.settings.sign_in_failures_per_hour
    with runtime.throttle.failures(
        WrongPasswordError,
        (Rate("wrong passwords for this account", amount, HOUR), email),
        (Rate("wrong passwords from this address", amount, HOUR), address),
    ):
        user_id = _known(runtime, email, password)
    return runtime.database.run(
        lambda session: open_browser_session(session, user_id, runtime.settings.session_seconds)
    )


def _known(runtime: Runtime, email: str, password: str) -> str:
    with runtime.database.read() as session:
        user = queries.user_by_email(session, email)
    password_hash = user.password_hash if user is not None and user.password_hash else _nobody()
    is_right = _hashing().verify(password[:LONGEST_PASSWORD], password_hash)
    if user is None or not is_right:
        raise WrongPasswordError("The e-mail address or the password is wrong.")
    return user.id


def _checked(registration: Registration) -> tuple[str, str]:
    email, name = registration.email.strip().lower(), registration.name.strip()
    if not _EMAIL.fullmatch(email):
        raise InvalidRequestError("That is not an e-mail address.", param="email")
    if not SHORTEST_PASSWORD <= len(registration.password) <= LONGEST_PASSWORD:
        raise InvalidRequestError(
            f"A password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters; this one has "
            f"{len(registration.password)}.",
            param="password",
        )
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise InvalidRequestError(f"A name has 1 to {LONGEST_NAME} printable characters.", param="name")
    return email, name


def _create(session: Session, email: str, name: str, password_hash: str) -> str:
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
    return user_id
