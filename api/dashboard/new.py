"""A new fine-tune on one page: base model, data, plan, start. All of its state is in its address."""

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Response

from api.dashboard.data import inspect, inspect_held_out, recent_files
from api.dashboard.form import (
    FIELD_GROUPS,
    FIELD_NAMES,
    ROLES,
    body_of,
    is_of_data,
    kept_fields,
    new_address,
    presets_for,
    sayings,
    suffix_of,
)
from api.dashboard.memory_bar import LABELS, draw_methods
from api.dashboard.page import page_router, see_other, show
from api.deps import ActorDep, RuntimeDep, identify
from api.flash import carry_problem, read
from api.forms import check_form, read_form
from api.planning import job_request, plan_request
from core.accounts import hub_tokens
from core.accounts.service import Actor
from core.db.serialization import serialize
from core.errors import (
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    NotYetError,
    PermissionDeniedError,
    TunewrightError,
)
from core.fleet import service as fleet
from core.jobs import service as jobs
from core.planning import service as planning
from core.planning.preview import PlanPreview, preview_plan
from core.plans import service as plans
from core.registry.choices import find_choice, model_choices
from core.runtime import Runtime
from planner.plans import TrainingPlan

LONGEST_ADDRESS = 8000  # characters: browsers and proxies pass that many on

router = page_router()


@dataclass(frozen=True)
class Planned:
    """The third step: a preview, or why there is none, or why it may not be started."""

    preview: PlanPreview | None = None
    problem: TunewrightError | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a worker is still finding out what a plan needs to know."""
        return isinstance(self.problem, NotYetError)

    @property
    def is_dry_run(self) -> bool:
        """Whether each change of the setup costs a dry run by a worker."""
        return self.is_pending or (self.preview is not None and self.preview.is_dry_run)

    @property
    def plan(self) -> TrainingPlan | None:
        """The plan, where one fits."""
        return self.preview.plan if self.preview else None


@router.get("/new")
def show_new(request: Request, runtime: RuntimeDep, actor: ActorDep, q: str = "") -> Response:
    """The page as far as its address says."""
    fields = kept_fields(dict(request.query_params))
    return _show(request, runtime, actor, fields, search=q)


def _show(
    request: Request,
    runtime: Runtime,
    actor: Actor,
    fields: dict[str, str],
    *,
    search: str = "",
) -> Response:
    models_dir = runtime.settings.resolved_models_dir
    model = fields.get("model")
    part = request.headers.get("hx-target")
    values: dict[str, Any] = {}
    if part != "plan":
        with runtime.database.read() as session:
            devices = fleet.devices(session, runtime.settings)
            access = hub_tokens.access_of(session, runtime.settings, actor.organization_id)
        hub_state = runtime.hub.state(access)
        values = {
            "devices": devices,
            "choices": [] if model else model_choices(models_dir, devices, hub_state, search),
            "choice": find_choice(models_dir, devices, hub_state, model) if model else None,
            "recent": recent_files(runtime, actor),
            "search": search,
            "data": inspect(runtime, actor, fields),
            "held_out": inspect_held_out(runtime, actor, fields),
        }
    planned = _plan(runtime, actor, fields) if model and "file" in fields else None
    methods = draw_methods(planned.preview.methods) if planned and planned.preview else []
    return show(
        request,
        runtime,
        actor,
        "new.html",
        current="new",
        parts={"plan": "_plan_part.html", "models": "_models.html"},
        fields=fields,
        here=new_address(fields),
        groups=FIELD_GROUPS,
        roles=ROLES,
        labels=LABELS,
        planned=planned,
        methods=methods,
        says=sayings(planned.plan, planned.problem) if planned else {},
        has_requested=not fields.keys().isdisjoint(FIELD_NAMES),
        fingerprint=_fingerprint(planned.plan) if planned and planned.plan else "",
        presets=presets_for(fields),
        start_key=secrets.token_urlsafe(16),
        start=read(request),
        but=lambda **changes: new_address({**fields, **changes}),
        without_model=new_address({name: value for name, value in fields.items() if name != "model"}),
        without_data=new_address({name: value for name, value in fields.items() if not is_of_data(name)}),
        without_held_out=new_address({name: value for name, value in fields.items() if name != "validation_file"}),
        **values,
    )


def _plan(runtime: Runtime, actor: Actor, fields: dict[str, str]) -> Planned:
    preview = None
    try:
        body = body_of(fields)
        preview = preview_plan(runtime, actor, plan_request(body))
        if preview.plan is not None:
            jobs.check_quote(preview.plan.credits, body.max_credits)
    except (AuthenticationError, PermissionDeniedError):
        raise
    except TunewrightError as error:
        return Planned(preview, error)
    return Planned(preview)


def _fingerprint(plan: TrainingPlan) -> str:
    """What was shown and is agreed to by starting: the setup, the passes and the price."""
    agreed = (serialize(plan.setup), serialize(plan.hyperparameters), plan.device.name, plan.credits)
    return hashlib.sha256(repr(agreed).encode()).hexdigest()[:16]


@router.post("/new", dependencies=[Depends(check_form)])
async def start_job(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Start exactly what was shown; where that has changed, show what it is now instead."""
    return await run_sync(_start, request, runtime, actor, await read_form(request))


def _start(request: Request, runtime: Runtime, actor: Actor, form: dict[str, str]) -> Response:
    fields = kept_fields(form)
    if (characters := len(new_address(fields))) > LONGEST_ADDRESS:
        raise InvalidRequestError(
            f"The fields of this form have {characters:,} characters together; at most {LONGEST_ADDRESS:,} fit into "
            "the address of its page."
        )
    start = {"credit_code": form.get("credit_code", "").strip(), "suffix": form.get("suffix", "").strip()}
    try:
        said = {**start, "suffix": suffix_of(start["suffix"])}
        body = body_of({**fields, **{name: value for name, value in said.items() if value}})
        planned = plan_request(body)
        # A form that is sent twice makes one plan and one job.
        create = identify(request, runtime, actor, "", form.get("start_key"))
        plan = planning.create_plan(runtime, actor, planned, replace(create, path="/new/plan"))
        if _fingerprint(plans.training_plan(plan)) != form.get("fingerprint"):
            raise ConflictError(
                "The plan has changed since you saw it: free memory, prices or what finished runs taught are different "
                "now. This is the plan as it is; start it if it suits you.",
                code="plan_changed",
            )
        job = planning.submit_job(
            runtime, actor, planned, job_request(body.model_copy(update={"plan": plan.id})), create
        )
    except TunewrightError as error:
        return carry_problem(request, new_address(fields), error, **start)
    return see_other(f"/jobs/{job.id}")
