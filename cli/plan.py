"""`tunewright plan`: a plan without a service, a database or a GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.data_file import data_file
from cli.gpu_table import compare
from cli.option_flags import with_option_flags
from cli.plan_view import AlternativeView, PlanView, batch_line, method_line, show_plan
from cli.terminal import err, out
from cli.training_workers import sound_devices
from core.datasets.encoding import load_encoder, resolve_template
from core.datasets.examples import DataFormat, Example
from core.datasets.inspection import all_notices, check_structure, check_trainable, inspect_file, measure_tokens
from core.datasets.reading import read_examples
from core.errors import InvalidRequestError, ServiceUnavailableError
from core.hub_access import of_this_machine
from core.plans.service import decide
from core.registry.base_models import BaseModel, find_base_model
from core.registry.weights import check_weights
from core.settings_loading import load_settings
from planner import catalogue
from planner.devices import Device, device_of, parse_gpu
from planner.errors import PlannerError, UnsupportedArchitectureError
from planner.memory.dry_run import DryRunMemory, DryRunQuestion
from planner.model.families import FAMILIES
from planner.model.spec import ModelSpec
from planner.options import RequestedConfig
from planner.policy.candidates import Question
from planner.policy.choice import TrainingPlan
from planner.statistics import DatasetStatistics
from planner.wording import counted, gib, sentence, sentences
from worker import dry_runs

# English text in byte-pair encodings comes to about 4 bytes a token, and a chat template adds about 5 tokens a turn.
BYTES_PER_TOKEN = 4
TOKENS_PER_TURN = 5
DRY_RUN_TOLERANCE = 0.03  # the planner promises to agree with its own trainer this closely


# What is planned for where no data is given: a small, ordinary set of instructions.
ASSUMED = DatasetStatistics(1000, 512_000, 256_000, (512,) * 100, sampled=True)
ALL = "all"
_SKIP_ADVICE = " Mend them, or leave them out with --skip-broken-rows."


@dataclass(frozen=True)
class Subject:
    """What is to be planned: the model's configuration and the data's numbers. `note` says what was only estimated."""

    config: Mapping[str, Any]
    statistics: DatasetStatistics
    note: str | None


@with_option_flags
def plan(
    model: Annotated[str, typer.Argument(help="A catalogue id, a hub id (owner/name), or a folder under --models.")],
    data: Annotated[
        str | None,
        typer.Option(help="The training data: a file, or hf://owner/name. Default: an assumed set."),
    ] = None,
    skip_broken_rows: Annotated[
        bool, typer.Option("--skip-broken-rows", help="Leave out rows of the data that cannot be used.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="24GiB, A100-80GB, …; `all` compares every known GPU; `cpu` is this machine's. Default: what it has."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Also dry-run the planned training step, without weights or a GPU.")
    ] = False,
    models: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Local models; TUNEWRIGHT_MODELS_DIR, else var/models.")
    ] = None,
    *,
    requested: RequestedConfig,
) -> None:
    """Plan a run on this machine, without a service: method, memory, time and price."""
    settings = load_settings()
    try:
        devices = _devices(gpu)
        with data_file(data, settings) as path:
            subject = _read(models or settings.resolved_models_dir, model, path, skip_broken_rows)
        spec, memory = _sources(subject, devices, requested)
        question = Question(spec, subject.statistics, devices, requested, settings.prices, memory=memory)
        if gpu == ALL:
            out.print(compare(model, question))
        else:
            chosen = decide(question)
            out.print(show_plan(_view(model, subject.statistics, chosen)))
            if dry_run:
                out.print(dry_run_line(subject.config, chosen))
    except PlannerError as error:
        raise InvalidRequestError(str(error)) from None
    if subject.note:
        out.print(Text(subject.note, style="yellow"))


def _devices(gpu: str | None) -> list[Device]:
    if gpu == ALL:
        return [device_of(entry) for entry in catalogue.gpus()]
    return [parse_gpu(gpu)] if gpu else sound_devices()


def _sources(
    subject: Subject, devices: Sequence[Device], requested: RequestedConfig
) -> tuple[ModelSpec, DryRunMemory | None]:
    """The model's numbers; where the planner has no family for it, counted and dry-run in a child process."""
    try:
        return ModelSpec.from_config(subject.config), None
    except UnsupportedArchitectureError:
        model_type = subject.config.get("model_type")
    err.print(f"Dry-running training steps of {model_type}, which the planner has no formula for…")
    kinds = tuple(sorted({device.kind for device in devices}))
    memory = dry_runs.dry_run_memory(DryRunQuestion(subject.config, kinds, subject.statistics, requested))
    return memory.spec, memory


def dry_run_line(config: Mapping[str, Any], chosen: TrainingPlan) -> Text:
    """What a dry run of the planned step finds, beside what was predicted."""
    (step,) = dry_runs.dry_run(config, [chosen.setup], "cpu" if chosen.device.kind == "cpu" else "cuda")
    predicted = chosen.memory.peak_allocated_bytes - chosen.memory.library_workspaces_bytes
    return Text(
        f"Dry-run: {gib(step.peak_bytes)} allocated at the peak, in {step.operator}; "
        f"{gib(step.static_bytes)} between steps. Predicted: {gib(predicted)}, {predicted / step.peak_bytes - 1:+.1%}.",
        style="green" if abs(predicted / step.peak_bytes - 1) <= DRY_RUN_TOLERANCE else "yellow",
    )


def _read(models_dir: Path, model: str, path: Path | None, skip_broken_rows: bool) -> Subject:
    """Read configuration and data; without the model's files, its numbers from the catalogue and tokens by length."""
    if path is None:
        note = f"No --data: planned for {ASSUMED.examples:,} examples of {ASSUMED.longest} tokens."
        return Subject(_config(models_dir, model), ASSUMED, note)
    inspection = inspect_file(path)
    check_structure(inspection, skip_broken_rows=skip_broken_rows, advice=_SKIP_ADVICE)
    data_format = replace(inspection.require_format(), skip_broken_rows=skip_broken_rows)
    if inspection.error_count:
        err.print(Text(f"{counted(inspection.error_count, 'broken row')} left out: {inspection.errors[0]}", "yellow"))
    try:
        base_model = _base_model(models_dir, model)
    except ServiceUnavailableError:
        entry = catalogue.find_model(model)
        if entry is None:
            raise
        note = f"Tokens are estimated from the length of the text: no tokenizer of {entry.hub_id} is within reach."
        return Subject(entry.config, estimate_statistics(path, data_format), note)
    directory = base_model.directory
    encoder = load_encoder(directory, resolve_template(directory, data_format, None))
    tokens = measure_tokens(path, data_format, encoder)
    check_trainable(tokens)
    for notice in all_notices(inspection, tokens):
        err.print(Text(str(notice), style="yellow"))
    return Subject(base_model.config, tokens.statistics, None)


def _config(models_dir: Path, model: str) -> Mapping[str, Any]:
    entry = catalogue.find_model(model)
    return entry.config if entry else _base_model(models_dir, model).config


def _base_model(models_dir: Path, model: str) -> BaseModel:
    """The model, its weights looked at from outside. Raises what finding it and `check_weights` raise."""
    base_model = find_base_model(models_dir, model, of_this_machine())
    is_known = base_model.config.get("model_type") in FAMILIES
    check_weights(base_model, ModelSpec.from_config(base_model.config) if is_known else None)
    return base_model


def estimate_statistics(path: Path, data_format: DataFormat) -> DatasetStatistics:
    """Token counts of a data set by the length of its text, for want of a tokenizer. Raises InvalidDatasetError."""
    lengths, trained = [], 0
    for example in read_examples(path, data_format):
        lengths.append(_estimated_tokens(example, trained_only=False))
        trained += _estimated_tokens(example, trained_only=True)
    return DatasetStatistics(len(lengths), sum(lengths), trained, tuple(sorted(lengths)), sampled=True)


def _estimated_tokens(example: Example, *, trained_only: bool) -> int:
    turns = [message for message in example.messages if message.trained or not trained_only]
    text = len((example.text or "").encode()) + sum(len(message.content.encode()) for message in turns)
    return -(-text // BYTES_PER_TOKEN) + TOKENS_PER_TURN * len(turns)


def _view(model: str, data: DatasetStatistics, chosen: TrainingPlan) -> PlanView:
    setup = chosen.setup
    about = "about " if data.sampled else ""
    return PlanView(
        model=model,
        method=method_line(setup.method, setup.lora_rank, setup.lora_alpha),
        batch=batch_line(
            setup.per_device_train_batch_size,
            setup.gradient_accumulation_steps,
            checkpointing=setup.gradient_checkpointing,
        ),
        data=f"{data.examples:,} examples, {about}{data.tokens:,} tokens, {data.trained_tokens:,} scored",
        training=f"{counted(chosen.n_epochs, 'epoch')}, {counted(chosen.total_steps, 'step')}, learning rate "
        f"{chosen.hyperparameters.learning_rate:g}, up to {setup.max_length:,} tokens",
        device=_device_line(chosen.device),
        predicted_bytes=chosen.memory.device_bytes,
        bound_bytes=chosen.memory.bound_bytes,
        free_bytes=chosen.device.free_bytes,
        terms=memory_terms(vars(chosen.memory)),
        seconds=chosen.quote.predicted_seconds,
        tokens_per_second=chosen.speed.tokens_per_second,
        credits=chosen.credits,
        rate=chosen.quote.credits_per_hour,
        reasons=sentences(chosen.reasons),
        alternatives=[
            AlternativeView(
                label=method_line(other.method, other.lora_rank),
                fits=other.fits,
                required_bytes=other.required_bytes,
                seconds=other.seconds,
                credits=other.credits,
                reason=sentence(other.reason),
            )
            for other in chosen.alternatives
            if not other.chosen
        ],
    )


def memory_terms(estimate: Mapping[str, Any]) -> dict[str, int]:
    """The terms of an estimate without its sums."""
    others = {"device_bytes", "bound_bytes", "peak_allocated_bytes", "static_allocated_bytes", "correction"}
    return {name: size for name, size in estimate.items() if name not in others}


def _device_line(device: Device) -> str:
    return f"{device.name} ({device.device_class})"
