"""A new fine-tune on one page: base model, data, plan, start. All of its state is in its address."""

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlencode

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Form, Request, Response

from api.dashboard.base_model_choice import find_choice, model_choices
from api.dashboard.memory_bar import LABELS, draw_methods
from api.dashboard.page import page_router, see_other, show
from api.dashboard.wishes import ROLES, WISHES, body_of, kept_fields
from api.deps import ActorDep, RuntimeDep, identify
from api.forms import check_form, check_token
from api.multipart import receive_form
from api.planning import job_request, plan_request
from core.accounts.service import Actor
from core.datasets import service as files
from core.datasets.models import FilePurpose, StoredFile
from core.datasets.samples import sample_path
from core.db.plain import to_plain
from core.errors import (
    AuthenticationError,
    ConflictError,
    NotYetError,
    PermissionDeniedError,
    TunewrightError,
)
from core.fleet import service as fleet
from core.jobs import service as jobs
from core.plans import service as plans
from core.plans.preview import PlanPreview, preview_plan
from core.runtime import Runtime
from planner.plans import TrainingPlan

SHOWN_FILES = 6

router = page_router()


@dataclass(frozen=True)
class Planned:
    """The third step: a preview, or why there is none."""

    preview: PlanPreview | None = None
    problem: TunewrightError | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a worker is still finding out what a plan needs to know."""
        return isinstance(self.problem, NotYetError)

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
    notice: TunewrightError | None = None,
    start: dict[str, str] | None = None,
) -> Response:
    with runtime.database.read() as session:
        devices = fleet.devices(session, runtime.settings)
        recent = files.list_files(session, actor.organization_id, purpose=FilePurpose.FINE_TUNE, limit=SHOWN_FILES).rows
    models_dir = runtime.settings.resolved_models_dir
    model, file_id = fields.get("model"), fields.get("file")
    part = request.headers.get("hx-target")
    values: dict[str, object] = {}
    if part != "plan":
        values = {
            "choices": [] if model else model_choices(models_dir, devices, search),
            "choice": find_choice(models_dir, devices, model) if model else None,
            "recent": recent,
            "search": search,
            "data": _inspect(runtime, actor, file_id, model, fields) if file_id else None,
        }
    planned = _plan(runtime, actor, fields) if model and file_id else None
    methods = draw_methods(planned.preview.methods) if planned and planned.preview else []
    return show(
        request,
        runtime,
        actor,
        "new.html",
        current="new",
        parts={"plan": "_plan_part.html", "models": "_models.html"},
        status=notice.status if notice else 200,
        address="/new?" + urlencode(fields) if part == "plan" else None,
        fields=fields,
        here="/new?" + urlencode(fields),
        devices=devices,
        wishes=WISHES,
        roles=ROLES,
        labels=LABELS,
        planned=planned,
        methods=methods,
        automatic=_automatic(planned.plan) if planned and planned.plan else {},
        fingerprint=_fingerprint(planned.plan) if planned and planned.plan else "",
        start_key=secrets.token_urlsafe(16),
        notice=notice,
        start=start or {},
        without=lambda *names: "/new?" + urlencode({k: v for k, v in fields.items() if k not in names}),
        **values,
    )


@dataclass(frozen=True)
class Inspected:
    """The second step: the file, what is in it, and under the chosen model its tokens."""

    file: StoredFile
    found: plans.FileInspection | None
    problem: TunewrightError | None
    is_unmapped: bool


def _inspect(runtime: Runtime, actor: Actor, file_id: str, model: str | None, fields: dict[str, str]) -> Inspected:
    with runtime.database.read() as session:
        file = files.get_file(session, actor.organization_id, file_id)
    try:
        structure = plans.inspect(runtime, actor, file_id, None)
    except TunewrightError as error:
        return Inspected(file, None, error, is_unmapped=False)
    needs_mapping = structure.structure is not None and structure.structure.data_format is None
    if model is None or (needs_mapping and "shape" not in fields):
        return Inspected(structure.file, structure, None, needs_mapping)
    try:
        data_format = plan_request(body_of(fields)).data_format
        return Inspected(
            structure.file, plans.inspect(runtime, actor, file_id, model, data_format), None, needs_mapping
        )
    except TunewrightError as error:
        return Inspected(structure.file, structure, error, needs_mapping)


def _plan(runtime: Runtime, actor: Actor, fields: dict[str, str]) -> Planned:
    try:
        return Planned(preview=preview_plan(runtime, actor, plan_request(body_of(fields))))
    except (AuthenticationError, PermissionDeniedError):
        raise
    except TunewrightError as error:
        return Planned(problem=error)


def _automatic(plan: TrainingPlan) -> dict[str, str]:
    """What the plan has in each field of the form."""
    setup, hyper = plan.setup, plan.hyperparameters
    values: dict[str, object] = {
        "method": setup.method.value,
        "n_epochs": hyper.n_epochs,
        "batch_size": setup.effective_batch_size,
        "learning_rate_multiplier": f"{hyper.learning_rate_multiplier:g}",
        "max_length": f"{setup.max_length:,}",
        "r": setup.lora_rank,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": None if setup.lora_rank is None else f"{setup.lora_dropout:g}",
        "target_modules": ", ".join(setup.lora_target_modules) if setup.lora_target_modules else None,
        "use_rslora": None if setup.lora_rank is None else _switch(setup.use_rslora),
        "use_dora": None if setup.lora_rank is None else _switch(setup.use_dora),
        "init_lora_weights": None if setup.lora_rank is None else setup.init_lora_weights.value,
        "modules_to_save": ", ".join(setup.modules_to_save) if setup.modules_to_save else None,
        "per_device_train_batch_size": setup.per_device_train_batch_size,
        "gradient_checkpointing": _switch(setup.gradient_checkpointing),
        "optim": setup.optimizer,
        "early_stopping_patience": hyper.early_stopping_patience or "off",
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _switch(is_on: bool) -> str:  # the value itself
    return "on" if is_on else "off"


def _fingerprint(plan: TrainingPlan) -> str:
    """What was shown and is agreed to by starting: the setup, the passes and the price."""
    agreed = (to_plain(plan.setup), to_plain(plan.hyperparameters), plan.device.name, plan.credits)
    return hashlib.sha256(repr(agreed).encode()).hexdigest()[:16]


@router.post("/new", dependencies=[Depends(check_form)])
async def start_job(request: Request, runtime: RuntimeDep, actor: ActorDep) -> Response:
    """Start exactly what was shown; where that has changed, show what it is now instead."""
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    return await run_sync(_start, request, runtime, actor, form)


def _start(request: Request, runtime: Runtime, actor: Actor, form: dict[str, str]) -> Response:
    fields = kept_fields(form)
    start = {name: form.get(name, "").strip() for name in ("credit_code", "suffix")}
    try:
        body = body_of({**fields, **{name: value for name, value in start.items() if value}})
        planned = plan_request(body)
        # A form that is sent twice makes one plan and one job.
        create = identify(request, runtime, actor, "", form.get("start_key"))
        plan = plans.create_plan(runtime, actor, planned, replace(create, path="/new/plan"))
        if _fingerprint(plans.training_plan(plan)) != form.get("fingerprint"):
            raise ConflictError(
                "The plan has changed since you saw it: free memory, prices or what finished runs taught are different "
                "now. This is the plan as it is; start it if it suits you.",
                code="plan_changed",
            )
        job = jobs.submit_job(runtime, actor, planned, job_request(body.model_copy(update={"plan": plan.id})), create)
    except TunewrightError as error:
        return _show(request, runtime, actor, fields, notice=error, start=start)
    return see_other(f"/jobs/{job.id}")


@router.post("/new/files")
async def upload_file(request: Request, runtime: RuntimeDep, actor: ActorDep, model: str = "") -> Response:
    """Take a data set, by drag and drop or a plain form, and go on with it."""
    limiter: CapacityLimiter = request.app.state.upload_limiter
    form = await receive_form(
        request.headers.get("content-type", ""),
        request.stream(),
        limiter,
        lambda filename, chunks: files.store_upload(runtime, actor.organization_id, filename, chunks),
        lambda upload: runtime.store.delete(upload.stored.key),
        more_fields=("csrf_token",),
    )
    try:
        check_token(request, form.fields.get("csrf_token", ""))
    except PermissionDeniedError:
        await run_sync(runtime.store.delete, form.upload.stored.key)
        raise
    file = await run_sync(_register, request, runtime, actor, form.upload)
    return see_other(_address(model, file.id))


@router.post("/new/sample", dependencies=[Depends(check_form)])
def use_sample(
    request: Request, runtime: RuntimeDep, actor: ActorDep, model: Annotated[str, Form(max_length=300)] = ""
) -> Response:
    """Go on with the sample data set, as if it had been uploaded."""
    path = sample_path()
    with runtime.database.read() as session:
        recent = files.list_files(session, actor.organization_id, purpose=FilePurpose.FINE_TUNE, limit=SHOWN_FILES).rows
    known = next((file for file in recent if file.filename == path.name), None)
    if known is None:
        upload = files.store_upload(runtime, actor.organization_id, path.name, [path.read_bytes()])
        known = _register(request, runtime, actor, upload)
    return see_other(_address(model, known.id))


def _register(request: Request, runtime: Runtime, actor: Actor, upload: files.Upload) -> StoredFile:
    create = identify(request, runtime, actor, upload.stored.sha256, None)
    return files.register_upload(runtime, actor.organization_id, upload, FilePurpose.FINE_TUNE, create)


def _address(model: str, file_id: str) -> str:
    return "/new?" + urlencode({"model": model, "file": file_id} if model else {"file": file_id})
