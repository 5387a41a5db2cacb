"""All jobs: found by name or state, page by page; and two of them over each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from sqlalchemy.orm import Session

from api.dashboard.curves import compared, comparison, lines_of
from api.dashboard.form import FIELD_GROUPS, exact_match_fields, in_words, new_address, planned_values
from api.dashboard.held_out import are_comparable, held_out_of, loss_marks
from api.dashboard.list_view import AfterQuery, ListView, OrderQuery, SearchQuery, filters_of
from api.dashboard.page import page_router, show
from api.deps import ActorDep, RuntimeDep
from core.datasets import service as files
from core.errors import InvalidRequestError, NotFoundError
from core.events.series import curve
from core.jobs import service as jobs
from core.jobs.models import Job
from core.jobs.states import JobSort, JobStatus
from core.plans.service import training_plan
from planner.plans import TrainingPlan
from planner.wording import counted, duration, gib

PAGE = 25
GROUPS: dict[str, tuple[JobStatus, ...]] = {
    "all": (),
    "active": tuple(status for status in JobStatus if not status.is_finished),
    "succeeded": (JobStatus.SUCCEEDED,),
    "failed": (JobStatus.FAILED, JobStatus.CANCELLED),
}

router = page_router()


@dataclass(frozen=True)
class Fact:
    """What one of two compared jobs has: as people read it, and of a file where to see it."""

    text: str
    address: str = ""


@router.get("/jobs")
def show_jobs(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    q: SearchQuery = "",
    group: str = "all",
    sort: JobSort = JobSort.CREATED,
    order: OrderQuery = None,
    after: AfterQuery = None,
) -> Response:
    """A page of jobs."""
    if group not in GROUPS:
        raise InvalidRequestError(f"There is no group {group!r}; there are {', '.join(GROUPS)}.", param="group")
    filters = filters_of(q=q.strip(), group=group if group != "all" else None)
    view = ListView("/jobs", sort, JobSort.CREATED, order, after, filters)
    with runtime.database.read() as session:
        found = jobs.search_jobs(
            session,
            actor.organization_id,
            statuses=GROUPS[group],
            text=q.strip(),
            sort=sort,
            is_descending=view.is_descending,
            after=after,
            limit=PAGE,
        )
    return show(
        request,
        runtime,
        actor,
        "jobs.html",
        current="jobs",
        parts={"job-list": "_job_list_part.html"},
        address=view.address,
        view=view,
        next_page=view.behind(found),
        jobs=found.rows,
        loss_marks=loss_marks(found.rows),
        totals={job.id: training_plan(job.plan).total_steps for job in found.rows},
        under_way=sum(not job.status.is_finished for job in found.rows),
        q=q,
        group=group,
    )


@router.get("/compare")
def compare(
    request: Request,
    runtime: RuntimeDep,
    actor: ActorDep,
    job: Annotated[list[str], Query(max_length=10)],
) -> Response:
    """Two runs: their losses over each other, and where their plans differ. With one of them, a choice of the other."""
    if len(job) not in (1, 2):
        raise InvalidRequestError(f"Choose two jobs to compare; {len(job)} were chosen.", param="job")
    with runtime.database.read() as session:
        pair = [jobs.get_job(session, actor.organization_id, job_id) for job_id in job]
        if len(pair) == 1:
            recent = jobs.search_jobs(session, actor.organization_id, limit=PAGE).rows
            others = [other for other in recent if other.id != pair[0].id]
            return show(request, runtime, actor, "compare_with.html", current="jobs", job=pair[0], others=others)
        curves = [curve(session, one.id) for one in pair]
        left, right = (_facts(session, one, training_plan(one.plan)) for one in pair)
    facts = [(name, left[name], right[name]) for name in left]
    return show(
        request,
        runtime,
        actor,
        "compare.html",
        current="jobs",
        pair=pair,
        are_comparable=are_comparable(*pair),
        rows=compared(*curves),
        loss_chart=comparison(*(one.suffix or one.id[-8:] for one in pair)),
        lines=lines_of(zip(("train", "other"), curves, strict=True)),
        differing=[fact for fact in facts if fact[1] != fact[2]],
        equal=[fact for fact in facts if fact[1] == fact[2]],
    )


def _facts(session: Session, job: Job, plan: TrainingPlan) -> dict[str, Fact]:
    measured = job.memory_measured
    planned = in_words(planned_values(plan) | exact_match_fields(job.plan.exact_match))
    held_out, measured_on = job.validation_file_id, held_out_of(job)
    texts = {
        **{
            field.label: planned.get(field.name, "–")
            for group in FIELD_GROUPS.values()
            for field in group
            if not field.is_own or field.name.startswith("exact_match.")
        },
        "Seed": str(job.seed),
        "Steps": f"{plan.total_steps:,}",
        "Device": plan.device.name,
        "Predicted memory": gib(plan.memory.device_bytes),
        "Measured memory": _measured(measured),
        "Processed tokens": f"{job.processed_tokens:,}" if job.processed_tokens is not None else "–",
        "Measured on": f"{counted(measured_on.rows, 'row')} ({measured_on.sha256[:8]})" if measured_on else "–",
        "Validation loss": f"{job.valid_loss:.4f}" if job.valid_loss is not None else "–",
        "Device time": duration(job.used_seconds),
        "Quote": f"{job.quote_credits:,}",
        "Charged": "–" if job.charged_credits is None else f"{job.charged_credits:,}",
    }
    return {
        "Base model": Fact(job.model),
        "Training data": _file(session, job, job.training_file_id),
        "Held-out data": _file(session, job, held_out) if held_out else Fact("a part of the training data"),
        **{name: Fact(text) for name, text in texts.items()},
    }


def _measured(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "–"
    least = "" if measured.get("is_attributed", True) else "at least "
    return least + gib(measured["device_bytes"])


def _file(session: Session, job: Job, file_id: str) -> Fact:
    try:
        file = files.get_file(session, job.organization_id, file_id)
    except NotFoundError:
        return Fact(f"{file_id}, deleted")
    return Fact(file.filename, new_address({"file": file.id}))
