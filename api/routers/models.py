"""Models: base models that can be tuned, and fine-tuned ones."""

from fastapi import APIRouter

from api.deps import ActorDep, RuntimeDep
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.models import ModelDeleted, ModelList, ModelObject, show_model
from core.accounts import hub_tokens
from core.fleet import service as fleet
from core.registry import service as registry
from core.registry.choices import find_choice, model_choices
from core.retention.jobs import model_kept_until

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", summary="List models", responses=errors(*SIGNED_IN, "secret_key_changed"))
def list_models(runtime: RuntimeDep, actor: ActorDep) -> ModelList:
    """Your fine-tuned models, newest first, then the base models at hand, then the catalogue.

    A base model says its size, whether its weights can be had, and what of it fits the devices that are here.
    Any hub model with safetensors weights and a supported architecture can be tuned too, listed or not.
    """
    models_dir = runtime.settings.resolved_models_dir
    with runtime.database.read() as session:
        entries = registry.list_models(session, actor.organization_id, models_dir)
        devices = fleet.devices(session, runtime.settings)
        access = hub_tokens.access_of(session, runtime.settings, actor.organization_id)
    choices = {choice.id: choice for choice in model_choices(models_dir, devices, runtime.hub.state(access))}
    return ModelList(
        data=[
            show_model(entry, choices.get(entry.id), model_kept_until(runtime.settings, entry.id, entry.created_at))
            for entry in entries
        ]
    )


@router.get(
    "/{model_id:path}",
    summary="Retrieve a model",
    responses=errors(*SIGNED_IN, "model_not_found", "secret_key_changed"),
)
def retrieve_model(runtime: RuntimeDep, actor: ActorDep, model_id: str) -> ModelObject:
    """One model of the list."""
    models_dir = runtime.settings.resolved_models_dir
    with runtime.database.read() as session:
        entry = registry.get_model(session, actor.organization_id, models_dir, model_id)
        devices = fleet.devices(session, runtime.settings)
        access = hub_tokens.access_of(session, runtime.settings, actor.organization_id)
    expires_at = model_kept_until(runtime.settings, entry.id, entry.created_at)
    return show_model(entry, find_choice(models_dir, devices, runtime.hub.state(access), entry.id), expires_at)


@router.delete(
    "/{model_id:path}",
    summary="Delete a fine-tuned model",
    responses=errors(*SIGNED_IN, "model_not_found", "permission_denied"),
)
def delete_model(runtime: RuntimeDep, actor: ActorDep, model_id: str) -> ModelDeleted:
    """Take a fine-tuned model off the list. Its job and artifacts stay."""
    models_dir = runtime.settings.resolved_models_dir
    runtime.database.run(lambda session: registry.delete_model(session, actor.organization_id, models_dir, model_id))
    return ModelDeleted(id=model_id)
