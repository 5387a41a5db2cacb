"""Jobs: OpenAI's shape, and beside it the plan, the price and the memory."""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from api.schemas.base import (
    IdentifiedBody,
    OrAuto,
    RequestBody,
    ResponseBody,
    unix_seconds,
    unix_seconds_or_none,
)
from api.schemas.errors import ErrorObject
from api.schemas.examples import JOB_EXAMPLE
from api.schemas.hyperparameters import (
    AdapterInput,
    AdapterObject,
    ChatTemplateName,
    ExactMatchInput,
    ExactMatchObject,
    FormatInput,
    HyperparametersInput,
    HyperparametersObject,
    MethodInput,
    MethodObject,
    SupervisedObject,
)
from api.schemas.options import planned_fields, with_options, with_planned
from api.schemas.plans import MemoryObject, QuoteObject, show_memory, show_quote
from core.db.serialization import deserialize
from core.jobs.evaluation import Evaluation, HeldOut, Scores
from core.jobs.models import Job
from core.jobs.service import MAX_SEED
from core.jobs.settlement import released_credits, used_credits
from core.jobs.states import JobStatus
from core.jobs.verdict import VerdictKind
from core.jobs.waiting import Place
from core.ledger.codes import MOST_CREDITS
from core.plans.service import training_plan
from planner.setup import TrainingSetup

MOST_ROWS = 10**9
LARGEST_EXPONENT = 700.0  # of e, that a float holds

MOST_PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512  # of metadata, as OpenAI's
MetadataKey = Annotated[str, Field(max_length=LONGEST_KEY)]
MetadataValue = Annotated[str, Field(max_length=LONGEST_VALUE)]

CREATE_EXAMPLES: list[JsonValue] = [
    {"model": "smollm2-135m-instruct", "training_file": "file-01JDZ5T0Q6W2N8V4K7R3M9X1YB", "suffix": "support"},
    {
        "model": "smollm2-135m-instruct",
        "training_file": "file-01JDZ5T0Q6W2N8V4K7R3M9X1YB",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
        "adapter": {"method": "lora", "r": 16},
        "priority": "quality",
        "credit_code": "SANTIAGO",
        "max_credits": 500,
        "seed": 42,
        "metadata": {"team": "support"},
    },
]


class _PlanCreate(RequestBody):
    """What a plan is asked for beside its options."""

    model: str = Field(
        min_length=1,
        max_length=300,
        description="A base model: an id that GET /v1/models lists, a hub id (owner/name), or the name of a directory "
        "under the service's models folder.",
    )
    training_file: str = Field(
        min_length=1,
        max_length=400,
        description="Id of an uploaded file, or a data set of the hub: "
        "`hf://owner/name?split=train&config=main&revision=COMMIT`, all after the name optional.",
    )
    validation_file: str | None = Field(
        None,
        max_length=400,
        description="Id of a file, or a data set of the hub, to evaluate on; without it a part of the training file is "
        "held out.",
    )
    suffix: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Part of the fine-tuned model's name: letters, digits, dots, hyphens and underscores.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Same seed, plan and machine: same adapter.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        None, max_length=MOST_PAIRS, description="Up to 16 pairs of one's own; lists can be filtered by them."
    )
    method: MethodInput | None = None
    hyperparameters: HyperparametersInput | None = Field(
        None, description="As `method.supervised.hyperparameters`, for older clients."
    )
    integrations: list[dict[str, Any]] | None = Field(
        None,
        description="Must be empty: no integrations are supported. Metrics are in events and the result file.",
        json_schema_extra={"maxItems": 0},
    )
    credit_code: str | None = Field(
        None, max_length=64, description="A code to redeem first. One that you redeemed before is no error."
    )
    plan: str | None = Field(
        None, max_length=64, description="Id of a plan: run exactly that, at its price. Only for jobs."
    )
    max_credits: int | None = Field(None, ge=0, le=MOST_CREDITS, description="Refuse a quote above this.")
    adapter: AdapterInput | None = None
    format: FormatInput | None = None
    chat_template: Annotated[ChatTemplateName | None, OrAuto()] = Field(
        None,
        description="Render conversations with this template instead of the model's own. Without either, with the "
        "first of `chatml`, `llama3`, `zephyr` that the model can read and stops at. It is published with the result.",
    )
    exact_match: ExactMatchInput | None = Field(
        None, description="Also compare answers to held-out prompts with a reference, before and after training."
    )


class PlanCreate(with_options(_PlanCreate)):  # type: ignore[misc]
    """What to plan. Everything but `model` and `training_file` may be left out or "auto": the planner decides it."""

    model_config = ConfigDict(json_schema_extra={"examples": CREATE_EXAMPLES})


class JobCreate(PlanCreate):
    """What to run: as for a plan, or with `plan` exactly what was planned."""


class JobMemory(ResponseBody):
    """Device memory of the run."""

    predicted: MemoryObject
    bound: int = Field(description="Bytes kept free on top of the prediction.")
    measured: dict[str, Any] | None = Field(
        description="Peaks measured by the probe or at the end (`when`): peak_allocated_bytes, peak_reserved_bytes, "
        "device_bytes, and the `versions` of the libraries that decide them; null until then. Without `is_attributed` "
        "other programs used the GPU, and device_bytes is the least that was the run's; without `as_planned` it fell "
        "back from its plan. Plans are corrected by neither."
    )


class ScoresObject(ResponseBody):
    """Scores of one model on the held-out rows; null where none were held out or it was not asked for."""

    valid_loss: float | None = Field(description="Nats per trained token.")
    perplexity: float | None = Field(description="e to the power of `valid_loss`.")
    valid_mean_token_accuracy: float | None
    metrics: dict[str, float] = Field(description="All that the objective measures on held-out rows, by name.")
    stopped_rate: float | None = Field(description="Share of answers that the model ended by itself.")
    exact_match: float | None = Field(description="Share of answers that come to the same as the reference.")


class HeldOutObject(ResponseBody):
    """What the run is measured on. Losses of two jobs compare only where `sha256` is the same."""

    rows: int
    scored_tokens: int
    sha256: str = Field(description="Of the tokens and of which are scored.")
    too_few: bool = Field(description="Too few rows for a difference of two losses to mean something.")


class VerdictObject(ResponseBody):
    """What the run's losses say."""

    kind: VerdictKind
    step: int | None = Field(description="With the lowest held-out loss; null where nothing was held out.")
    message: str = Field(description="In plain words, with what to try next.")


class EvaluationObject(ResponseBody):
    """What the run scored on the same held-out rows before and after training."""

    before: ScoresObject
    after: ScoresObject
    answers: int = Field(description="Held-out prompts that were answered.")
    base: Literal["nf4", "16-bit"] = Field(description="How the base model was loaded that the scores hold for.")
    valid_loss_on_16bit_base: float | None = Field(
        description="Of an adapter that was trained on a 4-bit base (`nf4`); null for others, and where that base "
        "in 16 bits did not fit."
    )


class _JobObject(IdentifiedBody):
    """A job beside its options."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    organization_id: str
    model: str
    training_file: str
    validation_file: str | None
    status: JobStatus = Field(
        description="OpenAI's six, and `pausing`, `paused`, `cancelling`. `succeeded`, `failed`, `cancelled` are final."
    )
    phase: str | None = Field(description="What a running job is doing: loading, probing, training, exporting, …")
    step: int = Field(description="Optimizer steps done.")
    total_steps: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None = Field(description="Unix seconds; null unless the job is running.")
    queue_position: int | None = Field(description="1 for the job that starts next; null unless the job is queued.")
    estimated_start: int | None = Field(
        description="Unix seconds, by the predicted times of the jobs in front; null unless it is queued for a worker "
        "that is there."
    )
    processed_tokens: int | None = Field(
        description="Tokens that were read so far, scored or not, in all epochs; padding is not counted."
    )
    trained_tokens: int | None = Field(description="The same number, by OpenAI's name.")
    fine_tuned_model: str | None
    result_files: list[str]
    error: ErrorObject | None = Field(description="Why a failed job failed; the same object as in an error response.")
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    integrations: list[dict[str, Any]] | None
    hyperparameters: HyperparametersObject
    method: MethodObject
    adapter: AdapterObject
    gradient_accumulation_steps: int
    chat_template: str | None = Field(description="The named template in use; null: the model's own, or none.")
    exact_match: ExactMatchObject | None
    held_out: HeldOutObject | None = Field(description="Null until its rows are read, and where none are held out.")
    evaluation: EvaluationObject | None = Field(description="Null until the job has succeeded.")
    verdict: VerdictObject | None = Field(description="Null until the job has succeeded.")
    plan: str = Field(description="Id of the frozen plan.")
    quote: QuoteObject
    charged: int | None = Field(description="Credits charged: at most the quote; null until the job is finished.")
    released: int | None = Field(description="Credits of the quote that came back; null until the job is finished.")
    used: int = Field(
        description="Credits its device time comes to so far. It may pass the quote; what is charged never does."
    )
    memory: JobMemory


class JobObject(with_planned(_JobObject)):  # type: ignore[misc]
    """A fine-tuning job. Its options are as it runs now: after a step down the micro-batch is below the plan's."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB_EXAMPLE]})


class JobDeleted(ResponseBody):
    """The job is gone, with all it made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": "ftjob-01JDZ5T0Q6W2N8V4K7R3M9X1YB", "object": "fine_tuning.job", "deleted": True}]
        }
    )

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


def show_job(job: Job, place: Place | None = None) -> JobObject:
    """A job as the wire shows it, with its place in line while it is queued."""
    planned = training_plan(job.plan)
    plan = replace(planned, setup=deserialize(TrainingSetup, job.setup))
    hyperparameters = HyperparametersObject(**planned_fields(plan, "hyperparameters"))
    return JobObject(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        organization_id=job.organization_id,
        model=job.model,
        training_file=job.training_file_id,
        validation_file=job.validation_file_id,
        status=job.status,
        phase=job.phase,
        step=job.step,
        total_steps=plan.total_steps,
        started_at=unix_seconds_or_none(job.started_at),
        finished_at=unix_seconds_or_none(job.finished_at),
        estimated_finish=unix_seconds_or_none(job.estimated_finish_at),
        queue_position=place.position if place else None,
        estimated_start=unix_seconds_or_none(place.starts_at) if place else None,
        processed_tokens=job.processed_tokens,
        trained_tokens=job.processed_tokens,
        fine_tuned_model=job.fine_tuned_model,
        result_files=[job.result_file_id] if job.result_file_id else [],
        error=ErrorObject(**job.error) if job.error else None,
        seed=job.seed,
        suffix=job.suffix,
        metadata=job.metadata_,
        integrations=job.integrations,
        hyperparameters=hyperparameters,
        method=MethodObject(supervised=SupervisedObject(hyperparameters=hyperparameters)),
        adapter=AdapterObject(**planned_fields(plan, "adapter")),
        **planned_fields(plan),
        gradient_accumulation_steps=plan.setup.gradient_accumulation_steps,
        chat_template=job.plan.chat_template,
        exact_match=ExactMatchObject(**job.plan.exact_match) if job.plan.exact_match else None,
        held_out=_held_out(deserialize(HeldOut, job.held_out)) if job.held_out else None,
        evaluation=_evaluation(deserialize(Evaluation, job.evaluation)) if job.evaluation else None,
        verdict=VerdictObject(**job.verdict) if job.verdict else None,
        plan=job.plan_id,
        quote=show_quote(job.plan, plan.quote),
        charged=job.charged_credits,
        released=released_credits(job),
        used=used_credits(job, plan.quote),
        memory=JobMemory(
            predicted=show_memory(plan.memory), bound=plan.memory.bound_bytes, measured=job.memory_measured
        ),
    )


def _held_out(found: HeldOut) -> HeldOutObject:
    return HeldOutObject(**vars(found), too_few=not found.is_telling)


def _evaluation(found: Evaluation) -> EvaluationObject:
    return EvaluationObject(
        before=_scores(found.before),
        after=_scores(found.after),
        answers=found.answers,
        base="nf4" if found.is_on_4bit_base else "16-bit",
        valid_loss_on_16bit_base=found.valid_loss_on_16bit_base,
    )


def _scores(found: Scores) -> ScoresObject:
    perplexity = None if found.valid_loss is None else math.exp(min(found.valid_loss, LARGEST_EXPONENT))
    return ScoresObject(
        valid_loss=found.valid_loss,
        perplexity=perplexity,
        valid_mean_token_accuracy=found.metrics.get("valid_mean_token_accuracy"),
        metrics=dict(found.metrics),
        stopped_rate=found.stopped_rate,
        exact_match=found.exact_match,
    )
