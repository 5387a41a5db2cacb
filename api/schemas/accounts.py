"""Who is calling, and their keys."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, SecretStr, Strict
from pydantic.config import JsonDict

from api.schemas.base import (
    LATEST_SECONDS,
    IdentifiedBody,
    RequestBody,
    ResponseBody,
    unix_seconds,
    unix_seconds_or_none,
)
from core.accounts.models import ApiKey, HubToken, Scope
from core.accounts.service import Account, NewApiKey

_KEY_EXAMPLE: JsonDict = {
    "id": "key_01JDZ5T0Q6W2N8V4K7R3M9X1YB",
    "object": "api_key",
    "created_at": 1795219200,
    "name": "laptop",
    "prefix": "tw-3fJq0a",
    "scope": "write",
    "last_used_at": None,
    "expires_at": None,
    "revoked_at": None,
}


class OrganizationObject(ResponseBody):
    """What owns files, jobs, models and credits."""

    id: str
    name: str


class UserObject(ResponseBody):
    """A person."""

    id: str
    name: str
    email: str | None
    is_admin: bool


class AccountObject(ResponseBody):
    """The caller."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "account",
                    "organization": {"id": "org-01JDZ5T0Q6W2N8V4K7R3M9X1YB", "name": "Personal"},
                    "user": {
                        "id": "user-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
                        "name": "Owner",
                        "email": None,
                        "is_admin": True,
                    },
                }
            ]
        }
    )

    object: Literal["account"] = "account"
    organization: OrganizationObject
    user: UserObject


class ApiKeyCreate(RequestBody):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "laptop"}, {"name": "ci", "scope": "read", "expires_at": 1826755200}]}
    )

    name: str = Field(min_length=1, max_length=200, description="To tell it from the others.")
    scope: Annotated[Scope, Strict(False)] = Field(
        Scope.WRITE,
        description="`read`: only look. `write`: also change. `admin`: also administer, for administrators. At most "
        "that of the key or session that makes it.",
    )
    expires_at: Annotated[int | None, Field(ge=0, le=LATEST_SECONDS)] = Field(
        None, description="Unix seconds after which it no longer works; null: never."
    )


class ApiKeyObject(IdentifiedBody):
    """A key, without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY_EXAMPLE]})

    object: Literal["api_key"] = "api_key"
    created_at: int
    name: str
    prefix: str = Field(description="How the secret begins.")
    scope: Scope
    last_used_at: int | None = Field(description="To the minute.")
    expires_at: int | None
    revoked_at: int | None


class ApiKeyCreated(ApiKeyObject):
    """A key just made."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_KEY_EXAMPLE, "secret": "tw-3fJq0aXk1tPz7LrQ8wYbN5vC2mS9dHgE4uKiT6oR0xA"}]}
    )

    secret: str = Field(description="The bearer token. Shown this once; only its hash is kept.")


class ApiKeyDeleted(ResponseBody):
    """The key no longer works."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "key_01JDZ5T0Q6W2N8V4K7R3M9X1YB", "object": "api_key", "deleted": True}]}
    )

    id: str
    object: Literal["api_key"] = "api_key"
    deleted: Literal[True] = True


class HubTokenSet(RequestBody):
    """A token to keep."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": "hf_YourTokenFromTheHubsSettings"}]})

    token: SecretStr = Field(min_length=1, max_length=500, description="A token of the hub that may read is enough.")


class HubTokenObject(ResponseBody):
    """What is known of the organization's hub token. The token itself is never shown."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "hub_token", "hint": "x7Qk", "hub_account": "ada", "set_at": 1795219200}]
        }
    )

    object: Literal["hub_token"] = "hub_token"
    hint: str = Field(description="Its last four characters.")
    hub_account: str | None = Field(description="Whose it is on the hub; null where the hub did not answer then.")
    set_at: int


class HubTokenDeleted(ResponseBody):
    """The token is forgotten."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "hub_token", "deleted": True}]})

    object: Literal["hub_token"] = "hub_token"
    deleted: Literal[True] = True


def show_account(account: Account) -> AccountObject:
    """An account as the wire shows it."""
    user = account.user
    return AccountObject(
        organization=OrganizationObject(id=account.organization.id, name=account.organization.name),
        user=UserObject(id=user.id, name=user.name, email=user.email, is_admin=user.is_admin),
    )


def show_key(key: ApiKey) -> ApiKeyObject:
    """A key as lists show it."""
    return ApiKeyObject(
        id=key.id,
        created_at=unix_seconds(key.created_at),
        name=key.name,
        prefix=key.prefix,
        scope=key.scope,
        last_used_at=unix_seconds_or_none(key.last_used_at),
        expires_at=unix_seconds_or_none(key.expires_at),
        revoked_at=unix_seconds_or_none(key.revoked_at),
    )


def show_new_key(new: NewApiKey) -> ApiKeyCreated:
    """A new key with its secret."""
    return ApiKeyCreated(**show_key(new.key).model_dump(), secret=new.secret)


def show_hub_token(kept: HubToken) -> HubTokenObject:
    """A hub token as the wire shows it."""
    return HubTokenObject(hint=kept.hint, hub_account=kept.hub_account, set_at=unix_seconds(kept.set_at))
