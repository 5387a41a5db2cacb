"""The form of a new fine-tune: from its fields to a request body of the API, so that both are checked by one schema."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from api.errors import describe
from api.schemas.jobs import PlanCreate
from planner.optimizers import OPTIMIZERS

COLUMN_PREFIX = "column_"
# Each role that a shape's rows may have; the first ones are needed.
ROLES = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion", "system"),
    "question_answer": ("question", "answer", "system"),
    "alpaca": ("instruction", "output", "input", "system"),
    "text": ("text",),
}


@dataclass(frozen=True)
class Wish:
    """A field of the form that the planner decides where it is left empty."""

    name: str
    label: str
    help: str
    choices: tuple[tuple[str, str], ...] = ()


_SWITCH = (("true", "On"), ("false", "Off"))
WISHES = (
    Wish(
        "method", "Method", "How the model is adapted", (("full", "Full"), ("lora", "LoRA"), ("qlora", "QLoRA, 4-bit"))
    ),
    Wish("priority", "Priority", "Where several fit", (("quality", "Quality"), ("economy", "Economy"))),
    Wish("n_epochs", "Epochs", "Passes over the data"),
    Wish("batch_size", "Batch size", "Rows per optimizer step"),
    Wish("learning_rate_multiplier", "Learning rate multiplier", "Times the planner's own"),
    Wish("max_length", "Longest row", "Tokens; what is longer is cut"),
    Wish("r", "Rank", "Size of the adapter"),
    Wish("lora_alpha", "Alpha", "Scale of the adapter"),
    Wish("lora_dropout", "Dropout", "On the adapter's input"),
    Wish("target_modules", "Target modules", "Names of layers, with commas"),
    Wish("use_rslora", "rsLoRA", "Scales by the square root of the rank", _SWITCH),
    Wish("use_dora", "DoRA", "Trains lengths apart from directions", _SWITCH),
    Wish(
        "init_lora_weights", "Start", "Of the adapter", (("default", "Default"), ("pissa", "PiSSA"), ("olora", "OLoRA"))
    ),
    Wish("modules_to_save", "Trained whole", "embed_tokens, lm_head or both, with a comma"),
    Wish("per_device_train_batch_size", "Rows at once", "The rest is accumulated"),
    Wish("gradient_checkpointing", "Gradient checkpointing", "Trades time for memory", _SWITCH),
    Wish("optim", "Optimizer", "Its states' size", tuple((name, name) for name in OPTIMIZERS)),
    Wish("early_stopping_patience", "Early stopping", "After so many evaluations without a lower loss"),
)
_ADAPTER = (
    "method",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "modules_to_save",
)
_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_TEXTS = ("suffix", "credit_code")
_TOP = (
    "priority",
    "max_length",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "optim",
    "early_stopping_patience",
    *_TEXTS,
)
KNOWN = ("model", "file", "shape", *(wish.name for wish in WISHES))


def kept_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """What of the submitted fields says what to plan: those of this form that are filled in."""
    return {
        name: value.strip()
        for name, value in fields.items()
        if value.strip() and (name in KNOWN or name.startswith(COLUMN_PREFIX))
    }


def body_of(fields: Mapping[str, str]) -> PlanCreate:
    """The request that the form makes. Raises InvalidRequestError that names the field."""
    body: dict[str, object] = {"model": fields.get("model", ""), "training_file": fields.get("file", "")}
    body |= {name: _value(name, fields[name]) for name in _TOP if name in fields}
    adapter = {name: _value(name, fields[name]) for name in _ADAPTER if name in fields}
    hyperparameters = {name: _value(name, fields[name]) for name in _HYPERPARAMETERS if name in fields}
    if adapter:
        body["adapter"] = adapter
    if hyperparameters:
        body["hyperparameters"] = hyperparameters
    if "shape" in fields:
        body["format"] = {"shape": fields["shape"], "columns": _columns(fields)}
    try:
        return PlanCreate.model_validate(body)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise describe(problems, "text/html") from None


def _columns(fields: Mapping[str, str]) -> dict[str, str]:
    roles = ROLES.get(fields["shape"], ())
    return {role: fields[COLUMN_PREFIX + role] for role in roles if COLUMN_PREFIX + role in fields}


def _value(name: str, text: str) -> object:
    """The text as the schema's type where it reads as one; else the text, for the schema to refuse by name."""
    if name in ("target_modules", "modules_to_save"):
        return [part.strip() for part in text.split(",") if part.strip()]
    if name in _TEXTS:
        return text
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
