"""The form of a new fine-tune: from its fields to a request body of the API, so that both are checked by one schema."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from pydantic import ValidationError

from api.errors import describe
from api.schemas.jobs import PlanCreate
from planner.optimizers import OPTIMIZERS
from planner.plans import TrainingPlan

COLUMN_PREFIX = "column_"
# Each role that a shape's rows may have. The first are needed: as many as `NEEDED` says, else one.
ROLES = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion", "system"),
    "question_answer": ("question", "answer", "system"),
    "alpaca": ("instruction", "output", "input", "system"),
    "preference": ("chosen", "rejected", "prompt", "system"),
    "text": ("text",),
}
NEEDED = {"prompt_completion": 2, "question_answer": 2, "alpaca": 2}


@dataclass(frozen=True)
class Wish:
    """A field of the form that is decided for whoever leaves it empty. `empty`: what the field then says.

    `is_own`: it is the owner's to say, and in no plan.
    """

    name: str
    label: str
    help: str
    choices: tuple[tuple[str, str], ...] = ()
    empty: str = "Automatic"
    is_own: bool = False


_SWITCH = (("true", "On"), ("false", "Off"))
WISHES = {
    "Adapter": (
        Wish(
            "method",
            "Method",
            "How the model is adapted",
            (("full", "Full"), ("lora", "LoRA"), ("qlora", "QLoRA, 4-bit")),
        ),
        Wish("priority", "Policy", "Where several fit", (("quality", "Quality"), ("economy", "Economy")), is_own=True),
        Wish("r", "Rank", "Size of the adapter"),
        Wish("lora_alpha", "Alpha", "Scale of the adapter"),
        Wish("lora_dropout", "Dropout", "On the adapter's input"),
        Wish("target_modules", "Target modules", "Names of layers, with commas"),
        Wish("use_rslora", "rsLoRA", "Scales by the square root of the rank", _SWITCH),
        Wish("use_dora", "DoRA", "Trains lengths apart from directions", _SWITCH),
        Wish(
            "init_lora_weights",
            "Start",
            "Of the adapter",
            (("default", "Default"), ("pissa", "PiSSA"), ("olora", "OLoRA")),
        ),
        Wish("modules_to_save", "Trained whole", "embed_tokens, lm_head or both, with a comma"),
    ),
    "Training": (
        Wish("n_epochs", "Epochs", "Passes over the data"),
        Wish("batch_size", "Batch size", "Rows per optimizer step"),
        Wish("learning_rate", "Learning rate", "The peak"),
        Wish("warmup_ratio", "Warmup", "Share of the steps"),
        Wish("weight_decay", "Weight decay", "On what is trained"),
        Wish("early_stopping_patience", "Early stopping", "Evaluations without a lower loss", empty="Off"),
        Wish(
            "chat_template",
            "Chat template",
            "Instead of the model's own",
            (("chatml", "ChatML"), ("llama3", "Llama 3"), ("zephyr", "Zephyr, plain words")),
            is_own=True,
        ),
        Wish("seed", "Seed", "Same seed, same adapter", empty="Random", is_own=True),
    ),
    "Memory": (
        Wish("max_length", "Longest row", "Tokens; what is longer is cut"),
        Wish("packing", "Packing", "Several examples in one row", _SWITCH),
        Wish("per_device_train_batch_size", "Rows at once", "The rest is accumulated"),
        Wish("gradient_checkpointing", "Gradient checkpointing", "Trades time for memory", _SWITCH),
        Wish("optim", "Optimizer", "Its states' size", tuple((name, name) for name in OPTIMIZERS)),
    ),
    "Price": (Wish("max_credits", "Most credits", "A dearer plan is not started", empty="No limit", is_own=True),),
}
WISH_NAMES = tuple(wish.name for group in WISHES.values() for wish in group)
_ADAPTER = tuple(wish.name for wish in WISHES["Adapter"] if wish.name != "priority")
_HYPERPARAMETERS = ("n_epochs", "batch_size")
_START = ("suffix", "credit_code")
_TEXTS = ("validation_file", *_START)
_DATA = ("file", "validation_file", "shape")
_TOP = (*(name for name in WISH_NAMES if name not in (*_ADAPTER, *_HYPERPARAMETERS)), *_TEXTS)


def kept_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """What of the submitted fields says what to plan: those of this form that are filled in."""
    return {
        name: value.strip()
        for name, value in fields.items()
        if value.strip() and (name in ("model", *WISH_NAMES) or is_of_data(name))
    }


def is_of_data(name: str) -> bool:
    """Whether a field says which data, and how to read it."""
    return name in _DATA or name.startswith(COLUMN_PREFIX)


def new_address(fields: Mapping[str, str]) -> str:
    """The address of the page that these fields make."""
    return "/new?" + urlencode(fields) if fields else "/new"


def missing_roles(fields: Mapping[str, str], columns: Collection[str]) -> list[str]:
    """The needed roles of the chosen shape that no column of the file is named for."""
    shape = fields.get("shape", "")
    needed = ROLES.get(shape, ())[: NEEDED.get(shape, 1)]
    return [role for role in needed if fields.get(COLUMN_PREFIX + role, role) not in columns]


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


def planned_values(plan: TrainingPlan) -> dict[str, str]:
    """What the plan has in each field of the form, as a field takes it. Adapters' fields are left out of full ones."""
    setup, hyper = plan.setup, plan.hyperparameters
    values: dict[str, object] = {
        "method": setup.method.value,
        "r": setup.lora_rank,
        "lora_alpha": setup.lora_alpha,
        "lora_dropout": None if setup.lora_rank is None else f"{setup.lora_dropout:g}",
        "target_modules": ", ".join(setup.lora_target_modules) if setup.lora_target_modules else None,
        "n_epochs": hyper.n_epochs,
        "batch_size": setup.effective_batch_size,
        "learning_rate": f"{hyper.learning_rate:g}",
        "warmup_ratio": f"{hyper.warmup_ratio:g}",
        "weight_decay": f"{hyper.weight_decay:g}",
        "early_stopping_patience": hyper.early_stopping_patience,
        "max_length": setup.max_length,
        "packing": _switched(setup.packing),
        "per_device_train_batch_size": setup.per_device_train_batch_size,
        "gradient_checkpointing": _switched(setup.gradient_checkpointing),
        "optim": setup.optimizer,
    }
    if setup.lora_rank is not None:
        values |= {
            "use_rslora": _switched(setup.use_rslora),
            "use_dora": _switched(setup.use_dora),
            "init_lora_weights": setup.init_lora_weights.value,
            "modules_to_save": ", ".join(setup.modules_to_save) if setup.modules_to_save else None,
        }
    return {name: str(value) for name, value in values.items() if value is not None}


def _switched(is_on: bool) -> str:  # the value itself
    return "on" if is_on else "off"


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
