"""Plans: what would be run, on what, how long, for how much, and why."""

from typing import Literal

from pydantic import ConfigDict, Field

from api.schemas.base import ResponseBody, unix_seconds
from api.schemas.examples import PLAN_EXAMPLE
from api.schemas.files import NoticeObject, show_notices
from api.schemas.hyperparameters import AdapterObject, HyperparametersObject
from api.schemas.options import planned_fields, with_planned
from core.db.serialization import deserialize
from core.plans.models import Plan
from core.plans.service import notices_of, training_plan
from planner.devices import Device
from planner.memory.estimate import MemoryEstimate
from planner.plans import Alternative, Quote, TrainingPlan
from planner.setup import Method
from planner.statistics import DatasetStatistics
from planner.wording import sentence, sentences


class CorrectionObject(ResponseBody):
    """What finished runs of this device class, these library versions and this method have taught."""

    ratio: float = Field(description="Measured over predicted; already in device_bytes.")
    bound_share: float | None = Field(
        description="Of the prediction, kept as bound so that 99 of 100 runs stay below; null: the shipped bound."
    )
    runs: int = Field(description="Finished runs that it was learned from.")


class PaceObject(ResponseBody):
    """What finished runs of this device class, these library versions and this method say of the time of a step."""

    ratio: float = Field(description="Measured over predicted; already in tokens_per_second and in the quote.")
    runs: int = Field(description="Finished runs that it was learned from.")


class MemoryObject(ResponseBody):
    """Predicted device memory, in bytes."""

    device_bytes: int = Field(description="What the driver would report: everything together.")
    bound_bytes: int = Field(description="Kept free on top of it.")
    peak_allocated_bytes: int
    static_allocated_bytes: int = Field(description="Between steps.")
    breakdown: dict[str, int] = Field(description="Term by term, in bytes: base weights, adapters, optimizer state, …")
    correction: CorrectionObject


class QuoteObject(ResponseBody):
    """The price. It is a cap: less use costs less, a failure nothing."""

    credits: int = Field(description="The most that the run can cost.")
    credits_per_hour: int = Field(description="Rate of the device class.")
    predicted_seconds: float = Field(description="Predicted device time.")
    predicted_credits: int = Field(description="What that time costs at that rate, rounded up.")
    margin_seconds: float = Field(description="The bound: device time added because a prediction can fall short.")
    margin_credits: int = Field(description="What the bound adds to the price.")
    billed_seconds: float = Field(description="Device time that the quote covers: predicted and margin together.")
    expires_at: int = Field(description="Unix seconds; until then, 15 minutes by default, a job can name this plan.")


class PlanDevice(ResponseBody):
    """The device that was planned for."""

    name: str
    device_class: str
    total_bytes: int
    free_bytes: int


class AlternativeObject(ResponseBody):
    """A run that was considered."""

    method: Method
    r: int | None
    gradient_checkpointing: bool
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    optimizer: str
    device: str = Field(description="Its name.")
    device_class: str
    fits: bool
    required_bytes: int = Field(description="Predicted use and its bound.")
    headroom_bytes: int = Field(description="Free minus required; negative where it does not fit.")
    seconds: float
    credits: int
    chosen: bool
    reason: str = Field(description="Why it was chosen, or why not.")


class DataObject(ResponseBody):
    """What the plan knows of the data."""

    examples: int
    tokens: int
    scored_tokens: int = Field(description="Tokens that the loss is taken over, in one pass over the data.")
    trained_tokens: int = Field(description="The same number, by its older name.")
    longest: int = Field(description="Tokens of the longest example.")
    truncated_examples: int = Field(description="Examples longer than `max_length`, which are cut.")
    validation_examples: int = Field(description="Examples of the validation file.")
    held_out_examples: int = Field(description="Examples of the training file that are measured on and not trained.")
    sampled: bool
    chat_template: str | None = Field(
        description="The named template that conversations are rendered with; null: the model's own, or none."
    )


class _PlanObject(ResponseBody):
    """A plan beside its options."""

    id: str
    object: Literal["fine_tuning.plan"] = "fine_tuning.plan"
    created_at: int
    model: str
    training_file: str
    validation_file: str | None
    adapter: AdapterObject
    hyperparameters: HyperparametersObject
    gradient_accumulation_steps: int
    optimizer: str = Field(description="As `optim`, by its older name.")
    device: PlanDevice
    memory: MemoryObject
    tokens_per_second: float
    pace: PaceObject
    total_steps: int
    data: DataObject
    quote: QuoteObject
    reasons: list[str] = Field(description="Each decision in a sentence, in the order they were made.")
    notices: list[NoticeObject] = Field(description="What was noticed in the training file.")
    alternatives: list[AlternativeObject]


class PlanObject(with_planned(_PlanObject)):  # type: ignore[misc]
    """A plan, and the quote that stands until it expires."""

    model_config = ConfigDict(json_schema_extra={"examples": [PLAN_EXAMPLE]})


def show_memory(memory: MemoryEstimate) -> MemoryObject:
    """A memory estimate as the wire shows it."""
    terms = dict(vars(memory))
    return MemoryObject(
        **{name: terms.pop(name) for name in ("device_bytes", "bound_bytes", "peak_allocated_bytes")},
        static_allocated_bytes=terms.pop("static_allocated_bytes"),
        correction=CorrectionObject(**vars(terms.pop("correction"))),
        breakdown=terms,
    )


def show_quote(row: Plan, quote: Quote) -> QuoteObject:
    """A plan's quote as the wire shows it."""
    return QuoteObject(
        credits=row.quote_credits,
        credits_per_hour=quote.credits_per_hour,
        predicted_seconds=quote.predicted_seconds,
        predicted_credits=quote.predicted_credits,
        margin_seconds=quote.margin_seconds,
        margin_credits=quote.margin_credits,
        billed_seconds=quote.billed_seconds,
        expires_at=unix_seconds(row.expires_at),
    )


def show_plan(row: Plan) -> PlanObject:
    """A plan as the wire shows it."""
    plan = training_plan(row)
    return PlanObject(
        id=row.id,
        created_at=unix_seconds(row.created_at),
        model=row.model,
        training_file=row.training_file_id,
        validation_file=row.validation_file_id,
        adapter=AdapterObject(**planned_fields(plan, "adapter")),
        hyperparameters=HyperparametersObject(**planned_fields(plan, "hyperparameters")),
        **planned_fields(plan),
        gradient_accumulation_steps=plan.setup.gradient_accumulation_steps,
        optimizer=plan.setup.optimizer,
        device=show_device(plan.device),
        memory=show_memory(plan.memory),
        tokens_per_second=plan.speed.tokens_per_second,
        pace=PaceObject(**vars(plan.speed.pace)),
        total_steps=plan.total_steps,
        data=_data(row, plan),
        quote=show_quote(row, plan.quote),
        reasons=sentences(plan.reasons),
        notices=show_notices(notices_of(row)),
        alternatives=[_alternative(alternative) for alternative in plan.alternatives],
    )


def show_device(device: Device) -> PlanDevice:
    """The device of a plan."""
    return PlanDevice(
        name=device.name,
        device_class=device.device_class,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
    )


def _data(row: Plan, plan: TrainingPlan) -> DataObject:
    statistics = deserialize(DatasetStatistics, row.statistics)
    return DataObject(
        examples=statistics.examples,
        tokens=statistics.tokens,
        scored_tokens=statistics.trained_tokens,
        trained_tokens=statistics.trained_tokens,
        longest=statistics.longest,
        truncated_examples=plan.truncated_examples,
        validation_examples=statistics.validation_examples,
        held_out_examples=plan.hyperparameters.held_out_rows,
        sampled=statistics.sampled,
        chat_template=row.chat_template,
    )


def _alternative(considered: Alternative) -> AlternativeObject:
    terms = dict(vars(considered))
    return AlternativeObject(r=terms.pop("lora_rank"), reason=sentence(terms.pop("reason")), **terms)
