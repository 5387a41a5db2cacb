"""API keys."""

from fastapi import APIRouter

from api.deps import ActorDep, CreateRequestDep, RuntimeDep
from api.schemas.accounts import (
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyDeleted,
    ApiKeyObject,
    show_key,
    show_new_key,
)
from api.schemas.base import from_unix_seconds
from api.schemas.errors import CREATE, SIGNED_IN, errors
from api.schemas.lists import ListObject
from core.accounts import service as accounts

router = APIRouter(prefix="/v1/api_keys", tags=["Account"])


@router.post("", summary="Create an API key", responses=errors(*CREATE, "permission_denied", "api_key_in_use"))
def create_api_key(
    runtime: RuntimeDep, actor: ActorDep, body: ApiKeyCreate, create_request: CreateRequestDep
) -> ApiKeyCreated:
    """Make a key that may do at most what the caller may. Its secret is in this response and nowhere else."""
    expires_at = from_unix_seconds(body.expires_at)
    new = runtime.database.run(
        lambda session: accounts.create_api_key_once(
            session, actor, body.name, create_request, scope=body.scope, expires_at=expires_at
        )
    )
    return show_new_key(new)


@router.get("", summary="List API keys", responses=errors(*SIGNED_IN))
def list_api_keys(runtime: RuntimeDep, actor: ActorDep) -> ListObject[ApiKeyObject]:
    """All keys of the organization, revoked ones included, newest first, without their secrets."""
    with runtime.database.read() as session:
        return ListObject.of([show_key(key) for key in accounts.list_api_keys(session, actor.organization_id)])


@router.delete("/{key_id}", summary="Revoke an API key", responses=errors(*SIGNED_IN, "api_key_not_found"))
def delete_api_key(runtime: RuntimeDep, actor: ActorDep, key_id: str) -> ApiKeyDeleted:
    """Make a key unusable from now on."""
    runtime.database.run(lambda session: accounts.revoke_api_key(session, actor.organization_id, key_id))
    return ApiKeyDeleted(id=key_id)
