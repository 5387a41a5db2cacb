"""What jobs made."""

from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response

from api.dashboard.held_out import loss_marks
from api.dashboard.list_view import AfterQuery, ListView, OrderQuery, SearchQuery, filters_of
from api.dashboard.page import page_router, see_other, show
from api.deps import ActorDep, RuntimeDep
from api.forms import check_form
from core.jobs import queries as job_queries
from core.registry import queries as registry_queries
from core.registry import service as registry
from core.registry.queries import ModelSort

PAGE = 25

ModelName = Annotated[str, Query(max_length=500)]

router = page_router()


@router.get("/models")
def show_models(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    q: SearchQuery = "",
    base: Annotated[str, Query(max_length=300)] = "",
    sort: ModelSort = ModelSort.MADE,
    order: OrderQuery = None,
    after: AfterQuery = None,
) -> Response:
    """A page of the organization's models."""
    view = ListView("/models", sort, ModelSort.MADE, order, after, filters_of(q=q.strip(), base=base))
    with runtime.database.read() as session:
        found = registry_queries.search(
            session,
            actor.organization_id,
            text=q,
            base_model=base or None,
            sort=sort,
            is_descending=view.is_descending,
            after=after,
            limit=PAGE,
        )
        bases = registry_queries.base_models_of(session, actor.organization_id)
        steps = job_queries.checkpoints_by_id(session, [one.checkpoint_id for one in found.rows if one.checkpoint_id])
        made_by = job_queries.of_organization(session, actor.organization_id, [model.job_id for model in found.rows])
    return show(
        request,
        runtime,
        actor,
        "models.html",
        current="models",
        parts={"model-list": "_model_list.html"},
        address=view.address,
        view=view,
        next_page=view.behind(found),
        models=found.rows,
        made_by=made_by,
        steps=steps,
        loss_marks=loss_marks(made_by.values()),
        bases=bases,
        q=q,
        base=base,
    )


@router.get("/models/delete")
def ask_to_delete(request: Request, runtime: RuntimeDep, actor: ActorDep, model: ModelName) -> Response:
    """What taking a model off the list means, before it is done."""
    models_dir = runtime.settings.resolved_models_dir
    with runtime.database.read() as session:
        registry.get_model(session, actor.organization_id, models_dir, model)
        found = registry_queries.model_of(session, actor.organization_id, model)
    return show(request, runtime, actor, "delete_model.html", current="models", model_id=model, model=found)


@router.post("/models/delete", dependencies=[Depends(check_form)])
def delete_model(runtime: RuntimeDep, actor: ActorDep, model: Annotated[str, Form(max_length=500)]) -> Response:
    """Take a model off the list; its job and files stay."""
    models_dir = runtime.settings.resolved_models_dir
    runtime.database.run(lambda session: registry.delete_model(session, actor.organization_id, models_dir, model))
    return see_other("/models")
