"""Organizations' tokens for the model hub, and as whom the hub is asked for one of them.

Each organization reads of the hub what its own token opens, or what is public. What the operator's token opens is the
operator's: it serves organizations of administrators, and only where a setting says so.
"""

import re

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from pydantic import SecretStr
from sqlalchemy.orm import Session

from core.accounts import queries
from core.accounts.models import HubToken
from core.accounts.sealing import seal, unseal
from core.audit import service as audit
from core.audit.models import AuditType
from core.db.base import utc_now
from core.errors import InvalidRequestError, NotFoundError
from core.hub_access import ANONYMOUS, HubAccess, hint_of, of_this_machine
from core.runtime import Runtime
from core.settings import Settings

_TOKEN = re.compile(r"[!-~]{8,500}")


def access_of(session: Session, settings: Settings, organization_id: str) -> HubAccess:
    """As whom the hub is asked for an organization. Raises ServiceUnavailableError where its token cannot be read."""
    kept = session.get(HubToken, organization_id)
    if kept is not None:
        return HubAccess(SecretStr(unseal(settings, _purpose(organization_id), kept.sealed)))
    if settings.hub_token_for_administrators and queries.has_administrator(session, organization_id):
        return of_this_machine()
    return ANONYMOUS


def get_token(session: Session, organization_id: str) -> HubToken:
    """What is known of the organization's token. Raises NotFoundError."""
    kept = session.get(HubToken, organization_id)
    if kept is None:
        raise NotFoundError(
            "This organization has no hub token: it reads what is public on the hub.", code="hub_token_not_found"
        )
    return kept


def set_token(runtime: Runtime, organization_id: str, token: SecretStr) -> HubToken:
    """Keep a token in place of the one before, after asking the hub whose it is. A hub that is away is no hindrance.

    Raises InvalidRequestError where the hub refuses it, and ConflictError where the service has no secret key.
    """
    token = SecretStr(token.get_secret_value().strip())
    if not _TOKEN.fullmatch(token.get_secret_value()):
        raise InvalidRequestError(
            "This is no hub token: it has 8 to 500 letters, digits and signs, and no spaces. Copy it from the hub's "
            "settings.",
            code="invalid_hub_token",
            param="token",
        )
    sealed = seal(runtime.settings, _purpose(organization_id), token.get_secret_value())
    hub_account = _account(HubAccess(token))

    def save(session: Session) -> HubToken:
        queries.lock_organization(session, organization_id)
        kept = session.get(HubToken, organization_id) or HubToken(organization_id=organization_id)
        kept.sealed, kept.hint, kept.hub_account, kept.set_at = sealed, hint_of(token), hub_account, utc_now()
        session.add(kept)
        audit.record(
            session,
            AuditType.HUB_TOKEN_UPDATED,
            organization_id=organization_id,
            object_id=organization_id,
            hint=kept.hint,
            hub_account=hub_account,
        )
        return kept

    return runtime.database.run(save)


def remove_token(session: Session, organization_id: str) -> None:
    """Forget the organization's token. Raises NotFoundError."""
    session.delete(get_token(session, organization_id))
    audit.record(session, AuditType.HUB_TOKEN_DELETED, organization_id=organization_id, object_id=organization_id)


def seal_anew(session: Session, settings: Settings) -> int:
    """Encrypt all tokens with the secret key in force, so that the former one is needed no more; returns how many.

    Raises ServiceUnavailableError where one cannot be read.
    """
    tokens = queries.hub_tokens(session)
    for kept in tokens:
        purpose = _purpose(kept.organization_id)
        kept.sealed = seal(settings, purpose, unseal(settings, purpose, kept.sealed))
    return len(tokens)


def _account(access: HubAccess) -> str | None:
    """Whose token it is; None where the hub does not answer. Raises InvalidRequestError where it does not take it."""
    try:
        return access.account() or None
    except (OfflineModeIsEnabled, httpx2.HTTPError, HfHubHTTPError, ValueError) as error:
        refusal = access.refusal(error, "token")
        if refusal is not None:
            raise refusal from None
        return None


def _purpose(organization_id: str) -> str:
    return f"hub-token:{organization_id}"
