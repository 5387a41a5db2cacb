"""One job: where it stands, its curves as they grow, what it made, and what one can do with it."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import orjson
from fastapi import Depends, Header, Query, Request, Response

from api import downloads, event_stream
from api.dashboard.curves import charts_of, halves, latest, lines_of, row_of
from api.dashboard.evaluation_table import evaluation_table
from api.dashboard.form import (
    COLUMN_PREFIX,
    ROLES,
    SKIP,
    asked_values,
    exact_match_fields,
    new_address,
    planned_values,
)
from api.dashboard.held_out import held_out_of
from api.dashboard.memory_bar import LABELS, draw
from api.dashboard.page import page_router, see_other, show
from api.dashboard.snippets import snippets_for
from api.deps import ActorDep, RuntimeDep
from api.formatting import iso
from api.forms import check_form
from core.artifacts.models import JobArtifact
from core.datasets import service as files
from core.datasets.examples import DataFormat
from core.db.serialization import deserialize
from core.errors import NotFoundError
from core.events import queries as event_queries
from core.events import service as events
from core.events.models import EventType, JobEvent
from core.events.series import curve, point
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.publishing import publish_checkpoint
from core.jobs.settlement import due_credits, released_credits, used_credits
from core.jobs.waiting import places
from core.plans.service import requested_of, training_plan
from core.registry import queries as registry_queries
from core.runtime import Runtime
from planner.objectives import SPECS, ObjectiveSpec
from planner.plans import TrainingPlan
from planner.setup import TrainingSetup

SHOWN_MESSAGES = 200
SHOWN_CHECKPOINTS = 5
LARGEST_SAMPLES_BYTES = 1024**2
MEANINGS = {
    "adapter.zip": "The adapter, tokenizer and model card",
    "model.zip": "The whole model, tokenizer and model card",
    "metrics.csv": "Every step's numbers",
    "samples.json": "Answers before and after",
    "plan.json": "The plan as it was run",
    "exact_match.json": "Every comparison behind the exact match",
}

router = page_router()


@router.get("/jobs/{job_id}")
def show_job(request: Request, runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """The job as it is now; under htmx only what changes while it runs."""
    organization_id = actor.organization_id
    with runtime.database.read() as session:
        job = jobs.get_job(session, organization_id, job_id)
        # The newest event is read before the curve: a point may come twice, and is drawn once, but none is missed.
        last = events.page(session, job_id, after=None, limit=1)
        points = curve(session, job_id)
        messages = event_queries.messages(session, job_id, SHOWN_MESSAGES)
        artifacts = jobs.list_artifacts(session, organization_id, job_id)
        checkpoints = jobs.list_checkpoints(session, organization_id, job_id, after=None, limit=SHOWN_CHECKPOINTS).rows
        checkpoint_models = registry_queries.checkpoint_models(session, [job_id])
        place = places(session, runtime.settings, [job]).get(job_id)
        try:
            file = files.get_file(session, organization_id, job.training_file_id)
        except NotFoundError:
            file = None
    plan = training_plan(job.plan)
    spec = _spec(job)
    newest, validated = latest(points)
    return show(
        request,
        runtime,
        actor,
        "job.html",
        current="jobs",
        parts={"job-live": "_job_part.html"},
        job=job,
        plan=plan,
        setup=deserialize(TrainingSetup, job.setup),
        file=file,
        place=place,
        newest=newest,
        validated=validated,
        rows=[row_of(spec, one) for one in points],
        charts=charts_of(spec),
        lines=lines_of(halves(points)),
        messages=messages,
        last_event=last[0].id if last else None,
        artifacts=artifacts,
        adapter=artifacts[0] if artifacts else None,
        meanings=MEANINGS,
        checkpoints=checkpoints,
        checkpoint_models=checkpoint_models,
        samples=_samples(runtime, artifacts),
        evaluation=evaluation_table(job),
        held_out=held_out_of(job),
        snippets=snippets_for(job, plan, runtime.settings.resolved_models_dir) if artifacts else [],
        memory_bar=draw(plan.memory, plan.device.free_bytes, _scale(plan)),
        labels=LABELS,
        used=used_credits(job, plan.quote),
        released=released_credits(job),
        again=new_address(_as_fields(job, plan)),
    )


def _scale(plan: TrainingPlan) -> int:
    return round(max(plan.device.free_bytes, plan.memory.required_bytes) * 1.01)


def _samples(runtime: Runtime, artifacts: Sequence[JobArtifact]) -> list[dict[str, object]]:
    found = next((artifact for artifact in artifacts if artifact.name == "samples.json"), None)
    if found is None or found.size_bytes > LARGEST_SAMPLES_BYTES:
        return []
    with runtime.store.open(found.storage_key) as stream:
        samples: list[dict[str, object]] = orjson.loads(stream.read())
    return samples


def _as_fields(job: Job, plan: TrainingPlan) -> dict[str, str]:
    """The fields of a new run like this one: what was asked for stays, and everything else is planned again."""
    requested = requested_of(job.plan)
    asked = planned_values(plan) if requested is None else asked_values(requested, plan)
    data_format = deserialize(DataFormat, job.plan.data_format)
    values = {
        "model": job.model,
        "file": job.training_file_id,
        "validation_file": job.validation_file_id,
        "shape": data_format.shape,
        SKIP: "true" if data_format.skip_broken_rows else None,
        **{COLUMN_PREFIX + role: data_format.columns.get(role) for role in ROLES[data_format.shape]},
        **asked,
        "chat_template": job.plan.chat_template,
        "seed": str(job.seed),
        **exact_match_fields(job.plan.exact_match),
    }
    return {name: value for name, value in values.items() if value}


@router.get("/jobs/{job_id}/stream")
def stream_job(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    job_id: str,
    after: Annotated[str | None, Query(max_length=64)] = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """What happens to the job from there on, as server-sent events; a reconnect says where it was."""
    last_id = last_event_id or after
    event_stream.read_batch(runtime, actor.organization_id, job_id, last_id)  # errors before the 200
    with runtime.database.read() as session:
        spec = _spec(jobs.get_job(session, actor.organization_id, job_id))
    frames = event_stream.follow(runtime, actor.organization_id, job_id, last_id, partial(_frame, spec))
    return event_stream.EventStream(request.app.state.stream_places, actor.organization_id, frames)


def _spec(job: Job) -> ObjectiveSpec:
    return SPECS[deserialize(TrainingSetup, job.setup).objective]


def _frame(spec: ObjectiveSpec, event: JobEvent) -> str:
    if event.type is EventType.METRICS and event.data is not None:
        said: dict[str, object] = {"point": row_of(spec, point(event.data))}
    else:
        said = {"at": iso(event.created_at), "level": event.level, "message": event.message}
    return orjson.dumps(said).decode()


@router.get("/jobs/{job_id}/cancel")
def ask_to_cancel(request: Request, runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """What cancelling would cost, before it is done."""
    with runtime.database.read() as session:
        job = jobs.get_job(session, actor.organization_id, job_id)
    plan = training_plan(job.plan)
    used = due_credits(job, plan.quote)
    return show(request, runtime, actor, "cancel.html", current="jobs", job=job, plan=plan, used=used)


@router.post("/jobs/{job_id}/cancel", dependencies=[Depends(check_form)])
def cancel(runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """End the job."""
    runtime.database.run(lambda session: jobs.cancel_job(session, actor.organization_id, job_id))
    return see_other(f"/jobs/{job_id}")


@router.get("/jobs/{job_id}/delete")
def ask_to_delete(request: Request, runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """What deleting would take away and what it leaves, before it is done."""
    with runtime.database.read() as session:
        job = jobs.get_job(session, actor.organization_id, job_id)
        artifacts = jobs.list_artifacts(session, actor.organization_id, job_id)
    size_bytes = sum(artifact.size_bytes for artifact in artifacts)
    return show(
        request, runtime, actor, "delete_job.html", current="jobs", job=job, artifacts=artifacts, size_bytes=size_bytes
    )


@router.post("/jobs/{job_id}/delete", dependencies=[Depends(check_form)])
def delete(runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """Delete the job with all it made."""
    jobs.delete_job(runtime, actor.organization_id, job_id)
    return see_other("/jobs")


@router.post("/jobs/{job_id}/pause", dependencies=[Depends(check_form)])
def pause(runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """Stop the job after a checkpoint."""
    runtime.database.run(lambda session: jobs.pause_job(session, actor.organization_id, job_id))
    return see_other(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/resume", dependencies=[Depends(check_form)])
def resume(runtime: RuntimeDep, actor: ActorDep, job_id: str) -> Response:
    """Queue the job again."""
    organization_id = actor.organization_id
    runtime.database.run(lambda session: jobs.resume_job(session, runtime.settings, organization_id, job_id))
    return see_other(f"/jobs/{job_id}")


@router.post("/jobs/{job_id}/checkpoints/{checkpoint_id}/publish", dependencies=[Depends(check_form)])
def publish(runtime: RuntimeDep, actor: ActorDep, job_id: str, checkpoint_id: str) -> Response:
    """Make a model of a checkpoint."""
    runtime.database.run(lambda session: publish_checkpoint(session, actor.organization_id, job_id, checkpoint_id))
    return see_other(f"/jobs/{job_id}")


@router.get("/jobs/{job_id}/files/{name}")
def download(request: Request, runtime: RuntimeDep, actor: ActorDep, job_id: str, name: str) -> Response:
    """What the job published."""
    return downloads.send_artifact(runtime, request, actor.organization_id, job_id, name)


@router.get("/jobs/{job_id}/checkpoints/{checkpoint_id}")
def download_checkpoint(
    request: Request, runtime: RuntimeDep, actor: ActorDep, job_id: str, checkpoint_id: str
) -> Response:
    """A point the job can go on from."""
    return downloads.send_checkpoint(runtime, request, actor.organization_id, job_id, checkpoint_id)
