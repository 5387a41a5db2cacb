"""Encrypting what the service must read again: with its secret key, which is never in the database."""

import base64
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from core.accounts.tokens import new_token
from core.errors import ConflictError, ServiceUnavailableError
from core.settings import Settings

KEY_FILE = "secret.key"  # under the data directory of an embedded service


def seal(settings: Settings, purpose: str, text: str) -> str:
    """The text, encrypted for one purpose: nothing that was sealed for another opens in its place.

    Raises ConflictError where the service has no secret key.
    """
    keys = _keys(settings, purpose)
    if not keys:
        raise ConflictError(
            "This service keeps no secrets: whoever runs it gives every process the same TUNEWRIGHT_SECRET_KEY first.",
            code="secret_key_missing",
        )
    return keys[0].encrypt(text.encode()).decode()


def unseal(settings: Settings, purpose: str, sealed: str) -> str:
    """What was sealed, with the secret key or the former one. Raises ServiceUnavailableError where neither opens it."""
    for key in _keys(settings, purpose):
        with suppress(InvalidToken):
            return key.decrypt(sealed.encode()).decode()
    raise ServiceUnavailableError(
        "What this service keeps encrypted cannot be read: its secret key is another one than it was written with. "
        "Whoever runs it gives every process the same TUNEWRIGHT_SECRET_KEY, and the one before as "
        "TUNEWRIGHT_FORMER_SECRET_KEY.",
        code="secret_key_changed",
    )


def _keys(settings: Settings, purpose: str) -> list[Fernet]:
    """The key in force, which seals, then the one before; none where the service has not been given any."""
    return [Fernet(_derived(secret, purpose)) for secret in _secrets(settings)]


def _derived(secret: str, purpose: str) -> bytes:
    derivation = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"tunewright:{purpose}".encode())
    return base64.urlsafe_b64encode(derivation.derive(secret.encode()))


def _secrets(settings: Settings) -> Iterator[str]:
    """The secret key in force, which seals, then the one before."""
    if settings.secret_key is not None:
        yield settings.secret_key.get_secret_value()
    elif settings.database_url is None:
        yield _own_key(settings.data_dir / KEY_FILE)
    if settings.former_secret_key is not None:
        yield settings.former_secret_key.get_secret_value()


def _own_key(path: Path) -> str:
    """The embedded service's key, made when it is first needed: whole at once, so that all its processes have one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f"{KEY_FILE}.{os.getpid()}.{new_token()[:8]}")
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(new_token())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(made, path)
        except FileExistsError:
            pass  # another process was first, and all use its key
        finally:
            made.unlink()
    return path.read_text()
