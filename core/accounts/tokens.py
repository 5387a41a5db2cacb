"""Secrets that stand for someone: made here, shown once, kept only as a hash.

The tokens carry 256 random bits, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would slow.
"""

import hashlib
import secrets

API_KEY_PREFIX = "tw-"
SHOWN_CHARACTERS = 9


def new_token(prefix: str = "") -> str:
    """A fresh secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """The form in which a token is stored and looked up: 64 hex digits."""
    return hashlib.sha256(token.encode()).hexdigest()
