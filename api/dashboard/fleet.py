"""The fleet as it is, and what would fit on machines one does not have."""

from typing import Annotated

from fastapi import Depends, Form, Query, Request, Response

from api.dashboard.page import page_router, see_other, show
from api.deps import ActorDep, RuntimeDep, authenticate_admin
from api.flash import carry
from api.forms import check_form
from core.fleet import programs
from core.fleet import service as fleet
from core.jobs import queries as jobs
from core.registry.choices import best_longest_context, catalogue_spec, is_named
from planner import catalogue
from planner.devices import device_of
from planner.policy.longest_context import longest_context

router = page_router()
_FORM = [Depends(check_form), Depends(authenticate_admin)]


@router.get("/fleet")
def show_fleet(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Workers, their devices and what they run."""
    with runtime.database.read() as session:
        places = fleet.driven(session, runtime.settings)
        held = [place.row.job_id for place in places if place.row.job_id]
        own = jobs.of_organization(session, actor.organization_id, held)
        supervised, sweep = programs.programs(session), programs.last_sweep(session)
    return show(
        request,
        runtime,
        actor,
        "fleet.html",
        current="fleet",
        places=places,
        own=own,
        programs=supervised,
        sweep=sweep,
    )


@router.get("/fleet/{worker_id}/drain", dependencies=[Depends(authenticate_admin)])
def ask_to_drain(request: Request, runtime: RuntimeDep, actor: ActorDep, worker_id: str) -> Response:
    """What draining does to the worker and its jobs, before it is done."""
    with runtime.database.read() as session:
        worker = fleet.get_worker(session, worker_id)
        is_supervised = programs.is_supervised(session, worker)
    return show(
        request,
        runtime,
        actor,
        "drain.html",
        current="fleet",
        worker=worker,
        devices=[place.device for place in fleet.places_of(worker)],
        is_busy=any(row.job_id for row in worker.devices),
        is_supervised=is_supervised,
    )


@router.post("/fleet/{worker_id}/drain", dependencies=_FORM)
def drain(runtime: RuntimeDep, worker_id: str) -> Response:
    """Have a worker put its jobs back into the queue and leave."""
    runtime.database.run(lambda session: fleet.request_drain(session, worker_id))
    return see_other("/fleet")


@router.post("/fleet/start", dependencies=_FORM)
def start(
    request: Request,
    runtime: RuntimeDep,
    hostname: Annotated[str, Form(max_length=255)],
    name: Annotated[str, Form(max_length=100)],
) -> Response:
    """Have a drained worker's own service start it again."""
    runtime.database.run(lambda session: programs.request_start(session, hostname, name))
    return carry(request, "/fleet", said=f"{name} is started again in a moment.")


@router.get("/fits")
def show_fits(
    request: Request, runtime: RuntimeDep, actor: ActorDep, q: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """Any model of the catalogue on any size of GPU."""
    with runtime.database.read() as session:
        devices = fleet.devices(session, runtime.settings)
    sizes: dict[int, list[catalogue.CatalogueGpu]] = {}
    for gpu in sorted(catalogue.gpus(), key=lambda gpu: gpu.memory_gib):
        sizes.setdefault(gpu.memory_gib, []).append(gpu)
    rows = []
    for entry in catalogue.models():
        if is_named(q, entry.id, entry.title):
            spec = catalogue_spec(entry.id)
            rows.append(
                (
                    entry,
                    spec,
                    best_longest_context(spec, devices),
                    [longest_context(spec, device_of(of[0])) for of in sizes.values()],
                )
            )
    rows.sort(key=lambda row: row[1].parameters)
    return show(
        request,
        runtime,
        actor,
        "fits.html",
        current="fits",
        parts={"fits": "_fits.html"},
        sizes=sizes,
        rows=rows,
        devices=devices,
        q=q,
    )
