"""Plans."""

from fastapi import APIRouter

from api.deps import ActorDep, CreateRequestDep, RuntimeDep
from api.planning import plan_request
from api.schemas.errors import CREATE, PLANNING, SIGNED_IN, errors
from api.schemas.jobs import PlanCreate
from api.schemas.plans import PlanObject, show_plan
from core.planning import service as planning
from core.plans import service as plans

router = APIRouter(prefix="/v1/plans", tags=["Plans"])


@router.post("", summary="Create a plan", responses=errors(*CREATE, *PLANNING))
def create_plan(runtime: RuntimeDep, actor: ActorDep, body: PlanCreate, create_request: CreateRequestDep) -> PlanObject:
    """Plan a run against the data set and the fleet as they are now. Takes a job's body; nothing is held or charged.

    To run it, create a job with the same `model` and `training_file` and this plan's id as `plan`.
    """
    return show_plan(planning.create_plan(runtime, actor, plan_request(body), create_request))


@router.get("/{plan_id}", summary="Retrieve a plan", responses=errors(*SIGNED_IN, "plan_not_found"))
def retrieve_plan(runtime: RuntimeDep, actor: ActorDep, plan_id: str) -> PlanObject:
    """A plan as it was made."""
    with runtime.database.read() as session:
        return show_plan(plans.get_plan(session, actor, plan_id))
