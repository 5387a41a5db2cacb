"""The organization's token for the model hub."""

from fastapi import APIRouter

from api.deps import ActorDep, RuntimeDep
from api.schemas.accounts import HubTokenDeleted, HubTokenObject, HubTokenSet, show_hub_token
from api.schemas.errors import BODY, SIGNED_IN, errors
from core.accounts import hub_tokens

router = APIRouter(prefix="/v1/hub_token", tags=["Account"])


@router.get("", summary="Retrieve the hub token", responses=errors(*SIGNED_IN, "hub_token_not_found"))
def retrieve_hub_token(runtime: RuntimeDep, actor: ActorDep) -> HubTokenObject:
    """What is known of the token with which the hub is asked for this organization. The token itself is never shown."""
    with runtime.database.read() as session:
        return show_hub_token(hub_tokens.get_token(session, actor.organization_id))


@router.put(
    "",
    summary="Set the hub token",
    responses=errors(*SIGNED_IN, *BODY, "invalid_hub_token", "hub_token_refused", "secret_key_missing"),
)
def set_hub_token(runtime: RuntimeDep, actor: ActorDep, body: HubTokenSet) -> HubTokenObject:
    """Keep a token, encrypted, with which private and gated models and data sets of the hub are read from now on.

    The hub is asked whose it is. One that it refuses is not kept; where it does not answer, the token is kept as it is.
    """
    return show_hub_token(hub_tokens.set_token(runtime, actor.organization_id, body.token))


@router.delete("", summary="Remove the hub token", responses=errors(*SIGNED_IN, "hub_token_not_found"))
def delete_hub_token(runtime: RuntimeDep, actor: ActorDep) -> HubTokenDeleted:
    """Forget the token: the organization reads what is public on the hub."""
    runtime.database.run(lambda session: hub_tokens.remove_token(session, actor.organization_id))
    return HubTokenDeleted()
