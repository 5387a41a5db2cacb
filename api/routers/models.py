"""Models: base models that can be tuned, and fine-tuned ones."""

from fastapi import APIRouter

from api.deps import ActorDep, RuntimeDep
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.models import ModelDeleted, ModelList, ModelObject, show_model
from core.registry import service as registry

router = APIRouter(prefix="/v1/models", tags=["Models"])


@router.get("", summary="List models", responses=errors(*SIGNED_IN))
def list_models(runtime: RuntimeDep, actor: ActorDep) -> ModelList:
    """Your fine-tuned models, newest first, then the base models at hand, then the catalogue.

    Any hub model with safetensors weights and a supported architecture can be tuned too, listed or not.
    """
    with runtime.database.read() as session:
        entries = registry.list_models(session, actor.organization_id, runtime.settings.resolved_models_dir)
    return ModelList(data=[show_model(entry) for entry in entries])


@router.get("/{model_id:path}", summary="Retrieve a model", responses=errors(*SIGNED_IN, "model_not_found"))
def retrieve_model(runtime: RuntimeDep, actor: ActorDep, model_id: str) -> ModelObject:
    """One model of the list."""
    with runtime.database.read() as session:
        entry = registry.get_model(session, actor.organization_id, runtime.settings.resolved_models_dir, model_id)
    return show_model(entry)


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
