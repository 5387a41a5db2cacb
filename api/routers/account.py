"""The caller and the fleet they run on."""

from fastapi import APIRouter

from api.deps import ActorDep, RuntimeDep
from api.schemas.accounts import AccountObject, show_account
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.lists import ListObject
from api.schemas.workers import WorkerObject, show_worker
from core.accounts import service as accounts
from core.fleet import service as fleet

router = APIRouter(prefix="/v1")


@router.get("/account", tags=["Account"], summary="Retrieve the account", responses=errors(*SIGNED_IN))
def retrieve_account(runtime: RuntimeDep, actor: ActorDep) -> AccountObject:
    """Who this key or session belongs to."""
    with runtime.database.read() as session:
        return show_account(accounts.get_account(session, actor))


@router.get("/workers", tags=["Workers"], summary="List workers", responses=errors(*SIGNED_IN))
def list_workers(runtime: RuntimeDep, actor: ActorDep) -> ListObject[WorkerObject]:  # noqa: ARG001 (it signs in)
    """The workers heard of lately and their devices: what plans are made against."""
    with runtime.database.read() as session:
        return ListObject.of([show_worker(row) for row in fleet.workers(session, runtime.settings)])
