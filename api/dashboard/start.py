"""Start: what is running, what is free, what there is to spend, what was made last."""

from fastapi import Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from core.fleet import service as fleet
from core.jobs import service as jobs
from core.plans.service import training_plan
from core.registry import base_models
from core.registry import queries as models

LOOKED_AT = 20
SHOWN_MODELS = 4

router = page_router()


@router.get("/")
def show_start(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """The first page."""
    with runtime.database.read() as session:
        recent = jobs.list_jobs(session, actor.organization_id, after=None, limit=LOOKED_AT, metadata={}).rows
        places = fleet.driven(session, runtime.settings)
        made = models.models_of(session, actor.organization_id)[:SHOWN_MODELS]
    local = base_models.local_model_ids(runtime.settings.resolved_models_dir)
    running = [job for job in recent if not job.status.is_finished]
    return show(
        request,
        runtime,
        actor,
        "start.html",
        current="start",
        jobs=recent,
        running=running,
        totals={job.id: training_plan(job.plan).total_steps for job in running},
        places=places,
        models=made,
        starter=local[0] if local else None,
    )
