"""All jobs: found by name or state, page by page; and two of them over each other."""

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from core.errors import InvalidRequestError
from core.events.series import Point, curve
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.states import JobStatus
from core.plans.service import training_plan
from planner.plans import TrainingPlan

PAGE = 25
GROUPS: dict[str, tuple[JobStatus, ...]] = {
    "all": (),
    "active": tuple(status for status in JobStatus if not status.is_finished),
    "succeeded": (JobStatus.SUCCEEDED,),
    "failed": (JobStatus.FAILED, JobStatus.CANCELLED),
}

router = page_router()


@router.get("/jobs")
def show_jobs(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    q: Annotated[str, Query(max_length=100)] = "",
    group: str = "all",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """A page of jobs."""
    if group not in GROUPS:
        raise InvalidRequestError(f"There is no group {group!r}; there are {', '.join(GROUPS)}.", param="group")
    with runtime.database.read() as session:
        found = jobs.search_jobs(
            session, actor.organization_id, statuses=GROUPS[group], text=q.strip(), after=after, limit=PAGE
        )
    filters = {name: value for name, value in (("q", q), ("group", group)) if value and value != "all"}
    return show(
        request,
        runtime,
        actor,
        "jobs.html",
        current="jobs",
        parts={"job-list": "_job_list.html"},
        address="/jobs?" + urlencode(filters) if filters else "/jobs",
        jobs=found.rows,
        totals={job.id: training_plan(job.plan).total_steps for job in found.rows},
        older="/jobs?" + urlencode({**filters, "after": found.rows[-1].id}) if found.has_more else None,
        q=q,
        group=group,
        groups=GROUPS,
        is_first=after is None,
    )


@router.get("/compare")
def compare(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    job: Annotated[list[str], Query(max_length=10)],
) -> Response:
    """Two runs: their losses over each other, and where their plans differ."""
    if len(job) != 2:
        raise InvalidRequestError(f"Choose two jobs to compare; {len(job)} were chosen.", param="job")
    with runtime.database.read() as session:
        pair = [jobs.get_job(session, actor.organization_id, job_id) for job_id in job]
        curves = [curve(session, one.id) for one in pair]
    left, right = (_facts(one, training_plan(one.plan)) for one in pair)
    return show(
        request,
        runtime,
        actor,
        "compare.html",
        current="jobs",
        pair=pair,
        rows=_merged(*curves),
        facts=[(name, left[name], right[name]) for name in left],
    )


def _merged(left: Sequence[Point], right: Sequence[Point]) -> list[list[float | None]]:
    """Rows of step and four losses: training and validation of the left run, then of the right."""
    rows: dict[int, list[float | None]] = {}
    for column, points in ((1, left), (3, right)):
        for one in points:
            row = rows.setdefault(one.step, [one.step, None, None, None, None])
            if one.valid_loss is None:
                row[column] = one.train_loss
            else:
                row[column + 1] = one.valid_loss
    return [rows[step] for step in sorted(rows)]


def _facts(job: Job, plan: TrainingPlan) -> dict[str, str]:
    setup, measured = plan.setup, job.memory_measured
    return {
        "Base model": job.model,
        "Data": job.training_file_id,
        "Method": setup.method.value,
        "Rank": str(setup.lora_rank or "–"),
        "Batch size": str(setup.effective_batch_size),
        "Row length": f"{setup.max_length:,}",
        "Epochs": str(plan.n_epochs),
        "Steps": f"{plan.total_steps:,}",
        "Learning rate": f"{plan.hyperparameters.learning_rate:.2g}",
        "Device": plan.device.name,
        "Predicted memory": f"{plan.memory.device_bytes / 1024**3:.2f} GiB",
        "Measured memory": f"{measured['device_bytes'] / 1024**3:.2f} GiB" if measured else "–",
        "Quote": f"{job.quote_credits:,}",
        "Charged": "–" if job.charged_credits is None else f"{job.charged_credits:,}",
        "Seed": str(job.seed),
    }
