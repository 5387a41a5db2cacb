"""Making, keeping and finding plans.

Reading a data set and measuring its tokens takes a second or more, so a plan is drafted outside any write
transaction and saved, or frozen into a job, inside one.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from core.accounts.service import Actor
from core.artifacts.store import ArtifactStore
from core.datasets import service as files
from core.datasets.encoding import load_encoder
from core.datasets.examples import DataFormat
from core.datasets.inspection import (
    Inspection,
    Overlap,
    TokenInspection,
    check_structure,
    check_trainable,
    measure_tokens,
    overlap,
)
from core.datasets.models import FileStatus, StoredFile
from core.datasets.reading import read_examples
from core.db.base import utc_now
from core.db.plain import from_plain, to_plain
from core.errors import (
    ConflictError,
    InvalidDatasetError,
    InvalidModelError,
    InvalidRequestError,
    NotFoundError,
    PlanDoesNotFitError,
    ServiceUnavailableError,
)
from core.fleet import service as fleet
from core.ids import new_id
from core.plans import history, rehearsals
from core.plans.models import Plan
from core.registry.base_models import BaseModel, find_base_model
from core.registry.weights import check_weights
from core.retries.service import CreateRequest, earlier, once
from core.runtime import Runtime
from planner import policy
from planner.candidates import DerivedMemory, MemorySource
from planner.devices import Device
from planner.errors import (
    DoesNotFitError,
    InvalidConfigurationError,
    InvalidSetupError,
    UnsupportedArchitectureError,
)
from planner.model_spec import ModelSpec
from planner.policy import TrainingPlan, Wishes
from planner.rehearsed import RehearsalQuestion, RehearsedMemory
from planner.statistics import DatasetStatistics


@dataclass(frozen=True)
class PlanRequest:
    """What a person or program asks to have planned."""

    model: str
    training_file_id: str
    validation_file_id: str | None = None
    data_format: DataFormat | None = None
    wishes: Wishes = field(default_factory=Wishes)


@dataclass(frozen=True)
class PlanInputs:
    """What a plan depends on, read once: the model, the data set's tokens under it, the fleet and its past."""

    request: PlanRequest
    base_model: BaseModel
    source: DerivedMemory | RehearsedMemory
    training: StoredFile
    data_format: DataFormat
    tokens: TokenInspection
    statistics: DatasetStatistics
    devices: Sequence[Device]
    learned: history.Learned


@dataclass(frozen=True)
class PlanDraft:
    """A plan that is not saved yet."""

    request: PlanRequest
    base_model: BaseModel
    data_format: DataFormat
    tokens: TokenInspection
    plan: TrainingPlan
    rehearsed: RehearsedMemory | None  # where the model's memory comes from a rehearsal


@dataclass(frozen=True)
class FileInspection:
    """A file, what its inspection found (None where it could not be read or still waits), and its tokens if asked."""

    file: StoredFile
    structure: Inspection | None
    tokens: TokenInspection | None


def draft_plan(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanDraft:
    """Plan a run against the data set and the fleet as they are now. Holds no transaction while it computes.

    Raises what `gather_inputs` and `draft_from` raise.
    """
    return draft_from(runtime, gather_inputs(runtime, actor, request))


def gather_inputs(runtime: Runtime, actor: Actor, request: PlanRequest) -> PlanInputs:
    """Everything that a plan for this request depends on, as it is now.

    Raises NotFoundError for the file, ModelNotFoundError, InvalidModelError, InvalidDatasetError, NotYetError while a
    model without a formula is rehearsed, and ServiceUnavailableError where no worker has reported.
    """
    training = _usable_file(runtime, actor, request.training_file_id, "training_file")
    validation = (
        _usable_file(runtime, actor, request.validation_file_id, "validation_file")
        if request.validation_file_id
        else None
    )
    base_model = find_base_model(runtime.settings.resolved_models_dir, request.model)
    data_format = request.data_format or _detected(training, "training_file")
    tokens = _measure(runtime, base_model, training, data_format)
    check_trainable(tokens, param="training_file")
    statistics = tokens.statistics
    if validation is not None:
        held_out_format = request.data_format or _detected(validation, "validation_file")
        held_out = _measure(runtime, base_model, validation, held_out_format)
        statistics = statistics.with_validation(held_out.statistics)
    with runtime.database.read() as session:
        devices = fleet.devices(session, runtime.settings)
        learned = history.learned(session, runtime.settings)
    if not devices:
        raise ServiceUnavailableError(
            "No worker has reported a device lately, so nothing can be planned. Start one with `tunewright worker`.",
            code="no_workers",
        )
    source = _memory_source(runtime, base_model, devices, statistics, request.wishes)
    return PlanInputs(request, base_model, source, training, data_format, tokens, statistics, devices, learned)


def draft_from(runtime: Runtime, inputs: PlanInputs) -> PlanDraft:
    """The plan that follows from these inputs.

    Raises PlanDoesNotFitError, InvalidRequestError for wishes that contradict each other, and InvalidDatasetError
    where truncation leaves nothing to train.
    """
    request, tokens, source = inputs.request, inputs.tokens, inputs.source
    try:
        plan = policy.plan(
            source.spec,
            inputs.statistics,
            inputs.devices,
            request.wishes,
            runtime.settings.prices,
            corrections=inputs.learned.corrections,
            paces=inputs.learned.paces,
            memory=source,
        )
    except DoesNotFitError as error:
        raise PlanDoesNotFitError(str(error), param="model") from None
    except InvalidSetupError as error:
        raise InvalidRequestError(str(error)) from None
    if plan.truncated_examples:
        max_length = plan.setup.max_length
        tokens = _measure(runtime, inputs.base_model, inputs.training, inputs.data_format, max_length=max_length)
        check_trainable(tokens, param="max_length")
    rehearsed = source if isinstance(source, RehearsedMemory) else None
    return PlanDraft(request, inputs.base_model, inputs.data_format, tokens, plan, rehearsed)


def create_plan(runtime: Runtime, actor: Actor, request: PlanRequest, create_request: CreateRequest) -> Plan:
    """Draft and keep a plan. A retried create returns the first one. Raises what `draft_plan` raises."""
    with runtime.database.read() as session:
        plan_id = earlier(session, create_request)
        if plan_id is not None:
            return get_plan(session, actor, plan_id)
    draft = draft_plan(runtime, actor, request)

    def save(session: Session) -> Plan:
        plan_id = once(session, create_request, lambda: save_plan(session, runtime, actor, draft).id)
        return get_plan(session, actor, plan_id)

    return runtime.database.run(save)


def save_plan(session: Session, runtime: Runtime, actor: Actor, draft: PlanDraft) -> Plan:
    """Keep a draft, with a quote that stands for a while."""
    row = Plan(
        id=new_id("plan_"),
        organization_id=actor.organization_id,
        model=draft.request.model,
        model_revision=draft.base_model.revision,
        training_file_id=draft.request.training_file_id,
        validation_file_id=draft.request.validation_file_id,
        data_format=to_plain(draft.data_format),
        statistics=to_plain(draft.tokens.statistics),
        plan=to_plain(draft.plan),
        rehearsed=to_plain(draft.rehearsed) if draft.rehearsed else None,
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


def inspect(
    runtime: Runtime, actor: Actor, file_id: str, model_id: str | None, data_format: DataFormat | None = None
) -> FileInspection:
    """What is in a file and, with a model, its tokens, in the format that is detected unless one is given.

    Raises NotFoundError, InvalidDatasetError and what `find_base_model` raises.
    """
    file = _inspected_file(runtime, actor, file_id, "file_id")
    structure = files.inspection_of(file)
    tokens = None
    if model_id is not None and file.status is FileStatus.PROCESSED:
        base_model = find_base_model(runtime.settings.resolved_models_dir, model_id)
        tokens = _measure(runtime, base_model, file, data_format or _detected(file, "file_id"))
    return FileInspection(file, structure, tokens)


def held_out_overlap(
    runtime: Runtime, actor: Actor, training_file_id: str, validation_file_id: str, data_format: DataFormat | None
) -> Overlap:
    """Which held-out rows are trained on too; their loss says nothing. Raises as `gather_inputs` does for files."""
    training = _usable_file(runtime, actor, training_file_id, "training_file")
    validation = _usable_file(runtime, actor, validation_file_id, "validation_file")
    formats = (
        data_format or _detected(training, "training_file"), data_format or _detected(validation, "validation_file")
    )  # fmt: skip
    keys = (training.storage_key, validation.storage_key)
    return _overlapping(runtime.store, keys, tuple(_as_key(one) for one in formats))  # type: ignore[arg-type]  # as below


def training_plan(row: Plan) -> TrainingPlan:
    """The planner's plan within the row."""
    return from_plain(TrainingPlan, row.plan)


def memory_source(row: Plan, config: Mapping[str, Any]) -> MemorySource:
    """Where the estimates of a plan came from: its rehearsal, else the formula of its model's family."""
    if row.rehearsed is not None:
        return from_plain(RehearsedMemory, row.rehearsed)
    return DerivedMemory(_spec(config))


def _inspected_file(runtime: Runtime, actor: Actor, file_id: str, param: str) -> StoredFile:
    """The file, inspected now where that is quick."""
    with runtime.database.read() as session:
        file = files.get_file(session, actor.organization_id, file_id, param=param)
    if file.status is FileStatus.UPLOADED and file.size_bytes <= runtime.settings.inline_inspection_bytes:
        files.ensure_inspected(runtime, file_id)
        with runtime.database.read() as session:
            file = files.get_file(session, actor.organization_id, file_id, param=param)
    return file


def _usable_file(runtime: Runtime, actor: Actor, file_id: str, param: str) -> StoredFile:
    file = _inspected_file(runtime, actor, file_id, param)
    if file.status is FileStatus.UPLOADED:
        raise ConflictError(
            f"The file {file_id} ({file.size_bytes:,} bytes) is still being inspected. Try again in a moment.",
            code="file_not_processed",
            param=param,
        )
    if file.status is FileStatus.ERROR:
        raise InvalidDatasetError(
            f"The file {file.filename!r} cannot be used: {file.status_details}", code="invalid_dataset", param=param
        )
    return file


def _detected(file: StoredFile, param: str) -> DataFormat:
    inspection = from_plain(Inspection, file.inspection)
    check_structure(inspection, param=param)
    return inspection.require_format()


def _memory_source(
    runtime: Runtime,
    base_model: BaseModel,
    devices: Sequence[Device],
    statistics: DatasetStatistics,
    wishes: Wishes,
) -> DerivedMemory | RehearsedMemory:
    try:
        spec = _spec(base_model.config)
        check_weights(base_model, spec)
        return DerivedMemory(spec)
    except UnsupportedArchitectureError:
        check_weights(base_model, None)
        kinds = tuple(sorted({device.kind for device in devices}))
        return rehearsals.memory_for(runtime, RehearsalQuestion(base_model.config, kinds, statistics, wishes))


def _spec(config: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_config(config)
    except InvalidConfigurationError as error:
        raise InvalidModelError(str(error), param="model") from None


def _measure(
    runtime: Runtime, base_model: BaseModel, file: StoredFile, data_format: DataFormat, max_length: int | None = None
) -> TokenInspection:
    plain = _as_key(data_format)
    return _measured(runtime.store, file.storage_key, base_model.directory, plain, max_length)  # type: ignore[arg-type]  # a store is hashed by identity


@lru_cache(maxsize=128)
def _measured(
    store: ArtifactStore, storage_key: str, tokenizer: Path, data_format: bytes, max_length: int | None
) -> TokenInspection:
    """Token counts of one stored file under one tokenizer; a stored file never changes, so they never go stale."""
    with tempfile.TemporaryDirectory(prefix="tunewright-") as directory:
        path = store.materialize(storage_key, Path(directory))
        mapping = from_plain(DataFormat, orjson.loads(data_format))
        return measure_tokens(path, mapping, load_encoder(tokenizer), max_length=max_length)


@lru_cache(maxsize=32)
def _overlapping(store: ArtifactStore, storage_keys: tuple[str, str], data_formats: tuple[bytes, bytes]) -> Overlap:
    with tempfile.TemporaryDirectory(prefix="tunewright-") as directory:
        training, validation = (
            read_examples(store.materialize(key, Path(directory, name)), from_plain(DataFormat, orjson.loads(plain)))
            for name, key, plain in zip(("training", "validation"), storage_keys, data_formats, strict=True)
        )
        return overlap(training, validation)


def _as_key(data_format: DataFormat) -> bytes:
    return orjson.dumps(to_plain(data_format), option=orjson.OPT_SORT_KEYS)
