"""Fine-tuning jobs."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from api.deps import ActorDep, CreateRequestDep, PageDep, RuntimeDep
from api.planning import job_request, plan_request
from api.schemas.errors import CREATE, PLANNING, SIGNED_IN, errors
from api.schemas.jobs import LONGEST_KEY, LONGEST_VALUE, MOST_PAIRS, JobCreate, JobDeleted, JobObject, show_job
from api.schemas.lists import ListObject, list_of
from core.errors import InvalidRequestError
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.waiting import places
from core.planning import service as planning
from core.runtime import Runtime

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Fine-tuning"])

_METADATA = re.compile(r"metadata\[(.+)\]")


def metadata_filter(request: Request) -> dict[str, str] | None:
    """The pairs of `metadata[k]=v`; None for `metadata=null`, which asks for jobs without any."""
    wanted = {}
    for name, value in request.query_params.multi_items():
        if found := _METADATA.fullmatch(name):
            wanted[found[1]] = value
            if len(wanted) > MOST_PAIRS or len(found[1]) > LONGEST_KEY or len(value) > LONGEST_VALUE:
                raise InvalidRequestError(
                    f"Filter by at most {MOST_PAIRS} pairs of metadata, with keys of {LONGEST_KEY} characters and "
                    f"values of {LONGEST_VALUE}.",
                    param="metadata",
                )
        elif name == "metadata":
            if value != "null":
                raise InvalidRequestError("Filter by metadata with metadata[key]=value.", param="metadata")
            return None
    return wanted


@router.post(
    "",
    summary="Create a job",
    responses=errors(
        *CREATE,
        *PLANNING,
        "plan_mismatch",
        "quote_above_max_credits",
        "code_expired",
        "insufficient_credits",
        "plan_not_found",
        "code_unknown",
        "quote_expired",
        "code_already_redeemed",
        "code_exhausted",
        "queued_jobs_limit",
    ),
)
def create_fine_tuning_job(
    runtime: RuntimeDep, actor: ActorDep, body: JobCreate, create_request: CreateRequestDep
) -> JobObject:
    """Plan a run, hold its quote and queue it, all or nothing. With `plan`, run exactly what was planned.

    The quote is a cap: a job is charged what it used, at most the quote, and nothing if it fails by no doing of yours.
    """
    return _shown(runtime, planning.submit_job(runtime, actor, plan_request(body), job_request(body), create_request))


@router.get(
    "",
    summary="List jobs",
    responses=errors(*SIGNED_IN, "request_head_too_large"),
    openapi_extra={
        "parameters": [
            {
                "name": "metadata",
                "in": "query",
                "style": "deepObject",
                "explode": True,
                "schema": {
                    "type": "object",
                    "additionalProperties": {"type": "string", "maxLength": LONGEST_VALUE},
                    "maxProperties": MOST_PAIRS,
                },
                "description": "Only jobs with this metadata: `metadata[team]=support`. `metadata=null`: with none.",
            }
        ]
    },
)
def list_fine_tuning_jobs(
    runtime: RuntimeDep,
    actor: ActorDep,
    page: PageDep,
    metadata: Annotated[dict[str, str] | None, Depends(metadata_filter)],
) -> ListObject[JobObject]:
    """The organization's jobs, newest first."""
    with runtime.database.read() as session:
        found = jobs.list_jobs(session, actor.organization_id, after=page.after, limit=page.limit, metadata=metadata)
        in_line = places(session, runtime.settings, found.rows)
    return list_of(found, lambda job: show_job(job, in_line.get(job.id)))


@router.get("/{fine_tuning_job_id}", summary="Retrieve a job", responses=errors(*SIGNED_IN, "job_not_found"))
def retrieve_fine_tuning_job(runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str) -> JobObject:
    """One job, as it is now."""
    with runtime.database.read() as session:
        job = jobs.get_job(session, actor.organization_id, fine_tuning_job_id)
    return _shown(runtime, job)


@router.delete(
    "/{fine_tuning_job_id}",
    summary="Delete a job",
    responses=errors(*SIGNED_IN, "job_not_found", "job_not_finished", "store_unavailable"),
)
def delete_fine_tuning_job(runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str) -> JobDeleted:
    """Delete a finished job with its artifacts, checkpoints, result file, model and events.

    Its training data stays, and so do the ledger's rows, which name it.
    """
    jobs.delete_job(runtime, actor.organization_id, fine_tuning_job_id)
    return JobDeleted(id=fine_tuning_job_id)


@router.post(
    "/{fine_tuning_job_id}/cancel",
    summary="Cancel a job",
    responses=errors(*SIGNED_IN, "job_not_found", "invalid_job_state"),
)
def cancel_fine_tuning_job(runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str) -> JobObject:
    """End a job, at once or, where a worker holds it, as soon as that has let go. It is charged what it used.

    Cancelling twice is no error.
    """
    return _shown(
        runtime,
        runtime.database.run(lambda session: jobs.cancel_job(session, actor.organization_id, fine_tuning_job_id)),
    )


@router.post(
    "/{fine_tuning_job_id}/pause",
    summary="Pause a job",
    responses=errors(*SIGNED_IN, "job_not_found", "invalid_job_state"),
)
def pause_fine_tuning_job(runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str) -> JobObject:
    """Stop a job after a checkpoint and free its device. Its quote stays held."""
    return _shown(
        runtime,
        runtime.database.run(lambda session: jobs.pause_job(session, actor.organization_id, fine_tuning_job_id)),
    )


@router.post(
    "/{fine_tuning_job_id}/resume",
    summary="Resume a job",
    responses=errors(*SIGNED_IN, "job_not_found", "invalid_job_state", "queued_jobs_limit"),
)
def resume_fine_tuning_job(runtime: RuntimeDep, actor: ActorDep, fine_tuning_job_id: str) -> JobObject:
    """Queue a paused job again; it goes on from its last checkpoint, with the same data order and schedule."""
    return _shown(
        runtime,
        runtime.database.run(
            lambda session: jobs.resume_job(session, runtime.settings, actor.organization_id, fine_tuning_job_id)
        ),
    )


def _shown(runtime: Runtime, job: Job) -> JobObject:
    with runtime.database.read() as session:
        return show_job(job, places(session, runtime.settings, [job]).get(job.id))
