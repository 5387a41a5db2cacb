"""What jobs made."""

from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response

from api.dashboard.page import page_router, see_other, show
from api.deps import ActorDep, RuntimeDep
from api.forms import check_form
from core.registry import queries as registry_queries
from core.registry import service as registry

router = page_router()


@router.get("/models")
def show_models(
    request: Request, runtime: RuntimeDep, actor: ActorDep, q: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The organization's models, newest first."""
    with runtime.database.read() as session:
        found = registry_queries.models_of(session, actor.organization_id)
    words = q.lower().split()
    return show(
        request,
        runtime,
        actor,
        "models.html",
        current="models",
        parts={"model-list": "_model_list.html"},
        models=[model for model in found if all(word in model.id.lower() for word in words)],
        has_any=bool(found),
        q=q,
    )


@router.post("/models/delete", dependencies=[Depends(check_form)])
def delete_model(runtime: RuntimeDep, actor: ActorDep, model: Annotated[str, Form(max_length=500)]) -> Response:
    """Take a model off the list; its job and files stay."""
    models_dir = runtime.settings.resolved_models_dir
    runtime.database.run(lambda session: registry.delete_model(session, actor.organization_id, models_dir, model))
    return see_other("/models")
