"""What a job says and leaves behind: events, checkpoints, artifacts."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api import downloads, event_stream
from api.deps import ActorDep, PageDep, PageQuery, RuntimeDep
from api.schemas.errors import SIGNED_IN, errors
from api.schemas.events import (
    EVENT_EXAMPLE,
    ArtifactObject,
    CheckpointObject,
    EventObject,
    show_artifact,
    show_checkpoint,
    show_event,
)
from api.schemas.lists import ListObject, list_of
from api.schemas.models import ModelObject, show_model
from core.events import service as events
from core.events.models import JobEvent
from core.jobs import service as jobs
from core.jobs.publishing import publish_checkpoint
from core.paging import Page
from core.registry.queries import checkpoint_models
from core.registry.service import model_entry

ARTIFACT_TYPES = ("application/zip", "application/json", "text/csv", "text/markdown", "application/octet-stream")

router = APIRouter(prefix="/v1/fine_tuning/jobs/{fine_tuning_job_id}", tags=["Fine-tuning"])


def events_page(
    after: Annotated[
        str | None, Query(max_length=500, description="Id of the last event of the page before, or the last one seen.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many events at most.")] = 20,
) -> PageQuery:
    """The page a list of events asks for; a run has many."""
    return PageQuery(after, limit)


@router.get(
    "/events",
    summary="List or follow events",
    response_model=ListObject[EventObject],
    responses={
        200: {
            "description": "A page, newest first; or with `stream=true` server-sent events, oldest first, until the "
            "job is finished and `data: [DONE]` ends the stream.",
            "content": {
                "text/event-stream": {
                    "example": f'id: {EVENT_EXAMPLE["id"]}\ndata: {{"object": "fine_tuning.job.event", …}}\n\n',
                }
            },
        },
        **errors(*SIGNED_IN, "job_not_found", "event_streams_limit"),
    },
)
def list_fine_tuning_events(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    fine_tuning_job_id: str,
    page: Annotated[PageQuery, Depends(events_page)],
    stream: Annotated[bool, Query(description="Follow the job as server-sent events.")] = False,
    last_event_id: Annotated[
        str | None, Header(max_length=500, description="With `stream`: the last event seen; the stream goes on behind.")
    ] = None,
) -> ListObject[EventObject] | Response:
    """What happened to a job. A stream that broke goes on where it was, by `Last-Event-ID`, without gap or repeat."""
    organization_id = actor.organization_id
    if stream:
        last_id = last_event_id or page.after
        event_stream.read_batch(runtime, organization_id, fine_tuning_job_id, last_id)  # errors before the 200
        frames = event_stream.follow(runtime, organization_id, fine_tuning_job_id, last_id, _as_json)
        return event_stream.EventStream(request.app.state.stream_places, organization_id, frames)
    with runtime.database.read() as session:
        jobs.get_job(session, organization_id, fine_tuning_job_id)
        rows = events.page(session, fine_tuning_job_id, after=page.after, limit=page.limit + 1)
    return list_of(Page.of(rows, page.limit), show_event)


def _as_json(event: JobEvent) -> str:
    return show_event(event).model_dump_json()


@router.get("/checkpoints", summary="List checkpoints", responses=errors(*SIGNED_IN, "job_not_found"))
def list_fine_tuning_checkpoints(
    runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str, page: PageDep
) -> ListObject[CheckpointObject]:
    """The points the job could go on from, newest first."""
    with runtime.database.read() as session:
        job = jobs.get_job(session, actor.organization_id, fine_tuning_job_id)
        found = jobs.list_checkpoints(
            session, actor.organization_id, fine_tuning_job_id, after=page.after, limit=page.limit
        )
        published = checkpoint_models(session, [job.id])
    return list_of(found, partial(show_checkpoint, job, published))


@router.post(
    "/checkpoints/{checkpoint_id}/publish",
    summary="Publish a checkpoint",
    responses=errors(*SIGNED_IN, "job_not_found", "checkpoint_not_found", "invalid_job_state"),
)
def publish_fine_tuning_checkpoint(
    runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str, checkpoint_id: str
) -> ModelObject:
    """Make a model of a checkpoint, `ft:…:ckpt-step-N`. It is kept until that model is deleted; twice is no error."""
    return runtime.database.run(
        lambda session: show_model(
            model_entry(publish_checkpoint(session, actor.organization_id, fine_tuning_job_id, checkpoint_id))
        )
    )


@router.get(
    "/checkpoints/{checkpoint_id}/content",
    summary="Download a checkpoint",
    response_class=Response,
    responses={
        **downloads.responses(
            "A tar archive that `from_pretrained` loads once unpacked: the adapter or the model, tokenizer, README, "
            "optimizer state, run state and their hashes.",
            "application/x-tar",
        ),
        **errors(*SIGNED_IN, "job_not_found", "checkpoint_not_found", "invalid_job_state", "store_unavailable"),
    },
)
def retrieve_fine_tuning_checkpoint(
    request: Request, runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str, checkpoint_id: str
) -> Response:
    """What a job can go on from: its two newest checkpoints and its best, for some days after it is finished;
    published ones as long as their model is there."""
    return downloads.send_checkpoint(runtime, request, actor.organization_id, fine_tuning_job_id, checkpoint_id)


@router.get("/artifacts", summary="List artifacts", responses=errors(*SIGNED_IN, "job_not_found"))
def list_fine_tuning_artifacts(
    runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str
) -> ListObject[ArtifactObject]:
    """What the job published when it succeeded, the adapter first; empty before."""
    with runtime.database.read() as session:
        found = jobs.list_artifacts(session, actor.organization_id, fine_tuning_job_id)
    return ListObject.of([show_artifact(artifact) for artifact in found])


@router.get(
    "/artifacts/{name}",
    summary="Download an artifact",
    response_class=Response,
    responses={
        **downloads.responses("The bytes; `etag` is their SHA-256.", *ARTIFACT_TYPES),
        **errors(*SIGNED_IN, "job_not_found", "artifact_not_found", "store_unavailable"),
    },
)
def retrieve_fine_tuning_artifact(
    request: Request, runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str, name: str
) -> Response:
    """The adapter (`adapter.zip`), or one of the files beside it."""
    return downloads.send_artifact(runtime, request, actor.organization_id, fine_tuning_job_id, name)
