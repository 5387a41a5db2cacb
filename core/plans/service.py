"""Making, keeping and finding plans.

Reading a data set and measuring its tokens takes a second or more, so a plan is drafted outside any write
transaction and saved, or frozen into a job, inside one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from core.accounts.service import Actor
from core.datasets import hub_files
from core.datasets.examples import DataFormat, DataKind
from core.datasets.file_inspection import format_of, usable_file
from core.datasets.final_answers import ExactMatch
from core.datasets.inspection import (
    Inspection,
    Overlap,
    TokenInspection,
    all_notices,
    check_trainable,
)
from core.datasets.measuring import base_model_of, measure, overlapping_rows
from core.datasets.models import StoredFile
from core.datasets.notices import Notice
from core.db.base import utc_now
from core.db.serialization import deserialize, serialize
from core.errors import (
    ConflictError,
    InvalidDatasetError,
    InvalidModelError,
    InvalidRequestError,
    NotFoundError,
    PlanDoesNotFitError,
)
from core.fleet import service as fleet
from core.ids import new_id
from core.plans import dry_runs, idle
from core.plans.models import Plan
from core.registry.base_models import BaseModel
from core.registry.weights import check_weights
from core.runtime import Runtime
from planner.calibration import Learned
from planner.devices import Device
from planner.errors import (
    DoesNotFitError,
    InvalidConfigurationError,
    InvalidSetupError,
    UnsupportedArchitectureError,
)
from planner.memory.dry_run import DryRunMemory, DryRunQuestion
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig, path_of
from planner.policy import choice as policy
from planner.policy.candidates import DerivedMemory, Known, MemorySource, Question
from planner.policy.choice import TrainingPlan
from planner.reasons import Reason, reason
from planner.statistics import DatasetStatistics
from planner.throughput import SAMPLES, Answering

LONGEST = 2**31  # tokens: longer than any model reads


@dataclass(frozen=True)
class PlanRequest:
    """What a person or program asks to have planned."""

    model: str
    training_file_id: str
    validation_file_id: str | None = None
    data_format: DataFormat | None = None
    skip_broken_rows: bool = False  # leave out rows that cannot be used
    requested: RequestedConfig = field(default_factory=RequestedConfig)
    chat_template: str | None = None  # a named one; None: the model's own, else what suits the rows
    exact_match: ExactMatch | None = None

    @property
    def answering(self) -> Answering:
        """What the run generates: samples, and more where answers are compared (worker/training/export/answers.py)."""
        wanted = self.exact_match
        return Answering(max(SAMPLES.rows, wanted.rows), wanted.max_new_tokens) if wanted else SAMPLES


@dataclass(frozen=True)
class PlanInputs:
    """What a plan depends on, read once: the model, the data set's tokens under it, the fleet and its past."""

    request: PlanRequest
    base_model: BaseModel
    source: DerivedMemory | DryRunMemory
    training: StoredFile
    data_format: DataFormat
    tokens: TokenInspection
    statistics: DatasetStatistics
    devices: Sequence[Device]
    learned: Learned
    validation: StoredFile | None = None
    overlap: Overlap | None = None  # of the training with the validation file, where there is one
    known: Known = field(default_factory=dict, compare=False)  # estimates, so that each is made once

    def question(self, prices: Mapping[str, int]) -> Question:
        """What the planner is asked."""
        return Question(
            self.source.spec,
            self.statistics,
            self.devices,
            self.request.requested,
            prices,
            corrections=self.learned.corrections,
            speed_calibrations=self.learned.speed_calibrations,
            memory=self.source,
            answering=self.request.answering,
            known=self.known,
        )


@dataclass(frozen=True)
class PlanDraft:
    """A plan that is not saved yet."""

    request: PlanRequest
    base_model: BaseModel
    data_format: DataFormat
    tokens: TokenInspection
    statistics: DatasetStatistics  # of `tokens`, and of the validation file
    plan: TrainingPlan
    dry_run: DryRunMemory | None  # where the model's memory comes from a dry run
    training_sha256: str
    validation_sha256: str | None
    notices: tuple[Notice, ...] = ()  # of the training file


def gather_inputs(
    runtime: Runtime, actor: Actor, request: PlanRequest, learned: Callable[[Session], Learned]
) -> PlanInputs:
    """Everything that a plan for this request depends on, as it is now; `learned` reads what finished runs teach.

    Raises NotFoundError for the file, ModelNotFoundError, InvalidModelError, InvalidDatasetError, NotYetError while a
    model without a formula is dry-run, and ServiceUnavailableError where no device can train.
    """
    request = with_files(runtime, actor, request)
    reads_broken = request.data_format is not None or request.skip_broken_rows
    training = usable_file(runtime, actor, request.training_file_id, "training_file", reads_broken)
    validation = (
        usable_file(runtime, actor, request.validation_file_id, "validation_file", reads_broken)
        if request.validation_file_id
        else None
    )
    base_model = base_model_of(runtime, actor, request.model)
    skip = request.skip_broken_rows
    data_format = format_of(training, request.data_format, skip, "training_file")
    if request.exact_match is not None:
        data_format = _with_reference(training, data_format, request.exact_match)
    tokens = measure(runtime, base_model, training, data_format, request.chat_template)
    check_trainable(tokens, param="training_file")
    statistics, repeated = tokens.statistics, None
    if validation is not None:
        if request.data_format is None:
            _check_same_layout(data_format, format_of(validation, None, skip, "validation_file"))
        held_out = measure(runtime, base_model, validation, data_format, request.chat_template)
        statistics = statistics.with_validation(held_out.statistics)
        repeated = overlapping_rows(runtime, training, validation, data_format, data_format)
    with runtime.database.read() as session:
        devices = fleet.require_devices(session, runtime.settings)
        taught = learned(session)
    source = _memory_source(runtime, actor, base_model, devices, statistics, request.requested)
    return PlanInputs(
        request, base_model, source, training, data_format, tokens, statistics, devices, taught, validation, repeated
    )


def with_files(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanRequest:
    """The request with the ids of files in place of data sets of the hub, which are fetched where they are not here.

    Raises what `hub_files.ensure_file` raises.
    """

    def file_id(named: str, param: str) -> str:
        if not hub_files.is_hub_reference(named):
            return named
        return hub_files.ensure_file(runtime, actor.organization_id, named, param).id

    validation = request.validation_file_id
    return replace(
        request,
        training_file_id=file_id(request.training_file_id, "training_file"),
        validation_file_id=file_id(validation, "validation_file") if validation else None,
    )


def draft_from(runtime: Runtime, inputs: PlanInputs) -> PlanDraft:
    """The plan that follows from these inputs.

    Raises PlanDoesNotFitError, InvalidRequestError for options that contradict each other, and InvalidDatasetError
    where truncation leaves nothing to train.
    """
    request, tokens, source = inputs.request, inputs.tokens, inputs.source
    plan = decide(inputs.question(runtime.settings.prices))
    if plan.truncated_examples:
        max_length = plan.setup.max_length
        tokens = measure(
            runtime, inputs.base_model, inputs.training, inputs.data_format, request.chat_template, max_length
        )
        check_trainable(tokens, param="max_length")
    plan = replace(plan, reasons=(*plan.reasons, *_data_reasons(inputs)))
    dry_run = source if isinstance(source, DryRunMemory) else None
    statistics = replace(
        tokens.statistics,
        validation_examples=inputs.statistics.validation_examples,
        validation_tokens=inputs.statistics.validation_tokens,
    )
    notices = all_notices(deserialize(Inspection, inputs.training.inspection), tokens)
    return PlanDraft(
        request,
        inputs.base_model,
        inputs.data_format,
        tokens,
        statistics,
        plan,
        dry_run,
        inputs.training.sha256,
        inputs.validation.sha256 if inputs.validation is not None else None,
        notices,
    )


def decide(question: Question) -> TrainingPlan:
    """The planner's answer, for whoever asks: the service, its pages or the command line.

    Raises PlanDoesNotFitError, and InvalidRequestError for options that contradict each other.
    """
    try:
        return policy.plan(question)
    except DoesNotFitError as error:
        raise PlanDoesNotFitError(str(error), param="model") from None
    except InvalidSetupError as error:
        raise InvalidRequestError(str(error), param=path_of(error.option) if error.option else None) from None


def save_plan(session: Session, runtime: Runtime, actor: Actor, draft: PlanDraft) -> Plan:
    """Keep a draft, with a quote that stands for a while. Raises LimitReachedError where too many idle ones are."""
    idle.check_room(session, runtime.settings, actor.organization_id)
    row = Plan(
        id=new_id("plan_"),
        organization_id=actor.organization_id,
        model=draft.request.model,
        model_revision=draft.base_model.revision,
        training_file_id=draft.request.training_file_id,
        validation_file_id=draft.request.validation_file_id,
        training_sha256=draft.training_sha256,
        validation_sha256=draft.validation_sha256,
        data_format=serialize(draft.data_format),
        statistics=serialize(draft.statistics),
        plan=serialize(draft.plan),
        dry_run=serialize(draft.dry_run) if draft.dry_run else None,
        chat_template=draft.tokens.chat_template,
        requested=serialize(draft.request.requested),
        exact_match=serialize(draft.request.exact_match) if draft.request.exact_match else None,
        notices=[serialize(notice) for notice in draft.notices],
        quote_credits=draft.plan.credits,
        expires_at=utc_now() + timedelta(seconds=runtime.settings.quote_seconds),
    )
    session.add(row)
    session.flush()
    return row


def get_plan(session: Session, actor: Actor, plan_id: str) -> Plan:
    """The organization's plan. Raises NotFoundError."""
    row = session.get(Plan, plan_id)
    if row is None or row.organization_id != actor.organization_id:
        raise NotFoundError(f"No plan {plan_id!r}.", code="plan_not_found", param="plan")
    return row


def standing_plan(session: Session, actor: Actor, plan_id: str) -> Plan:
    """The organization's plan, if its quote still stands. Raises NotFoundError, ConflictError."""
    row = get_plan(session, actor, plan_id)
    if row.expires_at <= utc_now():
        raise ConflictError(
            f"The quote of {plan_id} stood until {row.expires_at:%H:%M:%S} UTC. Ask for a new plan.",
            code="quote_expired",
            param="plan",
        )
    return row


def training_plan(row: Plan) -> TrainingPlan:
    """The planner's plan within the row."""
    return deserialize(TrainingPlan, row.plan)


def notices_of(row: Plan) -> tuple[Notice, ...]:
    """What was noticed in the plan's data."""
    return tuple(deserialize(Notice, notice) for notice in row.notices or ())


def requested_of(row: Plan) -> RequestedConfig | None:
    """What was asked for; None for plans of versions that did not keep it."""
    return deserialize(RequestedConfig, row.requested) if row.requested is not None else None


def memory_source(row: Plan, config: Mapping[str, Any]) -> MemorySource:
    """Where the estimates of a plan came from: its dry run, else the formula of its model's family."""
    if row.dry_run is not None:
        return deserialize(DryRunMemory, row.dry_run)
    return DerivedMemory(_spec(config))


def _check_same_layout(training: DataFormat, validation: DataFormat) -> None:
    """A run reads both of its files in one way. Raises InvalidDatasetError."""
    if (training.shape, training.kind) != (validation.shape, validation.kind):
        raise InvalidDatasetError(
            f"The rows of the validation file are of the shape {validation.shape!r}, those of the training file of "
            f"{training.shape!r}. Write both in the same shape.",
            param="validation_file",
        )


def _with_reference(file: StoredFile, data_format: DataFormat, exact_match: ExactMatch) -> DataFormat:
    """The format with the column that answers are compared with. Raises InvalidRequestError."""
    if data_format.kind is DataKind.TEXT:
        raise InvalidRequestError(
            "exact_match compares answers, and rows of raw text have none. Leave it out.", param="exact_match"
        )
    column = exact_match.column
    if column is None:
        return data_format
    columns = deserialize(Inspection, file.inspection).columns
    if column not in columns:
        raise InvalidRequestError(
            f"The rows have no column {column!r}; they have {', '.join(map(repr, columns[:12]))}.",
            param="exact_match.column",
        )
    return replace(data_format, columns={**data_format.columns, "reference": column})


def _data_reasons(inputs: PlanInputs) -> list[Reason]:
    """What the data decided."""
    reasons, shared = [], inputs.overlap
    if (name := inputs.tokens.chat_template) is not None:
        reasons.append(reason("template_asked" if inputs.request.chat_template else "template_lacking", name=name))
    if shared is not None and shared.count:
        examples = inputs.statistics.validation_examples
        reasons.append(reason("overlap", rows=shared.count, examples=examples, first=shared.rows[0]))
    return reasons


def _memory_source(
    runtime: Runtime,
    actor: Actor,
    base_model: BaseModel,
    devices: Sequence[Device],
    statistics: DatasetStatistics,
    requested: RequestedConfig,
) -> DerivedMemory | DryRunMemory:
    try:
        spec = _spec(base_model.config)
        check_weights(base_model, spec)
        return DerivedMemory(spec)
    except UnsupportedArchitectureError:
        check_weights(base_model, None)
        kinds = tuple(sorted({device.kind for device in devices}))
        question = DryRunQuestion(base_model.config, kinds, statistics, requested)
        return dry_runs.memory_for(runtime, actor.organization_id, question)


def _spec(config: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_config(config)
    except InvalidConfigurationError as error:
        raise InvalidModelError(str(error), param="model") from None
