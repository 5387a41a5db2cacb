"""The form of a new fine-tune: from its fields to a request body of the API, so that both are checked by one schema."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError

from api.errors import describe
from api.schemas.jobs import PlanCreate
from core.datasets.final_answers import ExactMatch
from core.errors import InvalidRequestError, TunewrightError
from planner.options import OPTIONS, Group, Option, RequestedConfig
from planner.plans import TrainingPlan, planned_options

# Latin letters that are no letter with an accent.
_WITHOUT_ACCENT = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
    | {"đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i"}
)
COLUMN_PREFIX = "column_"
# Each role that a shape's rows may have. The first are needed: as many as `NEEDED` says, else one.
ROLES = {
    "messages": ("messages", "system", "label"),
    "sharegpt": ("conversations", "system", "label"),
    "prompt_completion": ("prompt", "completion", "system", "input", "context", "history", "label"),
    "question_answer": ("question", "answer", "system", "input", "context", "history", "label"),
    "alpaca": ("instruction", "output", "input", "context", "history", "system", "label"),
    "preference": ("chosen", "rejected", "prompt", "system", "input", "context", "history"),
    "text": ("text",),
}
NEEDED = {"prompt_completion": 2, "question_answer": 2, "alpaca": 2}


@dataclass(frozen=True)
class FormField:
    """A field of the form that is decided for whoever leaves it empty. `empty`: what the field then says.

    `name`: the API's; with its object's before it where another field is called the same.

    `is_own`: it is the owner's to say, and in no plan.
    """

    name: str
    label: str
    help: str
    choices: tuple[tuple[str, str], ...] = ()
    empty: str = "Automatic"
    is_own: bool = False


def _asking(option: Option) -> FormField:
    return FormField(
        key_of(option), option.label, option.help, tuple(option.labels.items()), option.empty, option.planned is None
    )


def key_of(option: Option) -> str:
    """The name of an option's field."""
    return option.path.rpartition(".")[2]


_OPTIONS = {key_of(option): option for option in OPTIONS if option.is_in_form}
# What a run is asked for beside the planner's options, behind those of the same heading.
_OWN = {
    Group.TRAINING: (
        FormField(
            "chat_template",
            "Chat template",
            "Instead of the model's own",
            (("chatml", "ChatML"), ("llama3", "Llama 3"), ("zephyr", "Zephyr, plain words")),
            is_own=True,
        ),
        FormField("seed", "Seed", "Same seed, same adapter", empty="Random", is_own=True),
    ),
    Group.EVALUATION: (
        FormField(
            "exact_match.extract",
            "Exact match",
            "Compares answers to held-out rows by this",
            (("after_hashes", "What follows ####"), ("last_number", "The last number"), ("text", "All of the answer")),
            empty="Off",
            is_own=True,
        ),
        FormField(
            "exact_match.column", "Compared with", "A column of the rows", empty="The row's own answer", is_own=True
        ),
        FormField(
            "exact_match.rows", "Rows answered", "Before and after, at most", empty=str(ExactMatch.rows), is_own=True
        ),
        FormField(
            "exact_match.max_new_tokens",
            "Longest answer",
            "Tokens; what is longer is cut",
            empty=str(ExactMatch.max_new_tokens),
            is_own=True,
        ),
    ),
}
FIELD_GROUPS = {
    str(group): (*(_asking(option) for option in _OPTIONS.values() if option.group is group), *_OWN.get(group, ()))
    for group in Group
} | {
    "Price": (FormField("max_credits", "Most credits", "A dearer plan is not started", empty="No limit", is_own=True),)
}


@dataclass(frozen=True)
class Preset:
    """A choice that fills some fields of the form, and empties the others that presets fill."""

    label: str
    help: str
    fields: Mapping[str, str]


PRESETS = (
    Preset("Quick", "One pass over the data, by the cheapest method", {"priority": "economy", "n_epochs": "1"}),
    Preset("Balanced", "As the planner decides", {}),
    Preset("Best", "The least compressed method that fits, whatever it costs", {"priority": "quality"}),
)
_PRESET = ("method", "priority", "n_epochs")  # a method that is set would leave the priority nothing to decide
FIELD_NAMES = tuple(field.name for group in FIELD_GROUPS.values() for field in group)
# Names that are no words of their own, as a message may have them.
_LABELS = {field.name: field.label for group in FIELD_GROUPS.values() for field in group if "_" in field.name}
_NAMED = re.compile(rf"\b({'|'.join(map(re.escape, _LABELS))})\b")
_START = ("suffix", "credit_code")
_TEXTS = ("validation_file", *_START)
SKIP = "skip_broken_rows"
_DATA = ("file", "validation_file", "shape", SKIP)
# Where the request has each field, but for those of the data's format.
_PATHS = {name: name for name in (*FIELD_NAMES, *_TEXTS)} | {name: option.path for name, option in _OPTIONS.items()}


def kept_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """What of the submitted fields says what to plan: those of this form that are filled in."""
    return {
        name: value.strip()
        for name, value in fields.items()
        if value.strip() and (name in ("model", *FIELD_NAMES) or is_of_data(name))
    }


def suffix_of(name: str) -> str:
    """A name as people write it, as a part of a model's id: letters, digits, dots, hyphens and underscores.

    Raises InvalidRequestError for a name that has none of these.
    """
    plain = unicodedata.normalize("NFKD", name.translate(_WITHOUT_ACCENT)).encode("ascii", "ignore").decode()
    suffix = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:64]
    if name.strip() and not suffix:
        raise InvalidRequestError(
            f"The name becomes a part of the model's id, which is written in letters from a to z and digits, and "
            f"{name.strip()[:64]!r} has none of them. Write it in those, such as support-2.",
            param="suffix",
        )
    return suffix


def presets_for(fields: Mapping[str, str]) -> list[tuple[Preset, str, bool]]:
    """Each preset, the address of the page with it, and whether the page has it now."""
    others = {name: value for name, value in fields.items() if name not in _PRESET}
    now = {name: value for name, value in fields.items() if name in _PRESET}
    return [(one, new_address({**others, **one.fields}), now == one.fields) for one in PRESETS]


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
    body: dict[str, Any] = {"model": fields.get("model", ""), "training_file": fields.get("file", "")}
    for name, path in _PATHS.items():
        if name in fields:
            within, _, key = path.rpartition(".")
            (body.setdefault(within, {}) if within else body)[key] = _value(name, fields[name])
    if "exact_match" in body and "extract" not in body["exact_match"]:
        raise InvalidRequestError(
            "Say what of an answer is compared, or leave the other fields of exact match empty.",
            param="exact_match.extract",
        )
    data_format: dict[str, object] = {}
    if "shape" in fields:
        data_format = {"shape": fields["shape"], "columns": _columns(fields)}
    if SKIP in fields:
        data_format[SKIP] = fields[SKIP] == "true"
    if data_format:
        body["format"] = data_format
    try:
        checked: PlanCreate = PlanCreate.model_validate(body)
        return checked
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise describe(problems, "text/html") from None


def exact_match_fields(asked: Mapping[str, object] | None) -> dict[str, str]:
    """The fields that ask for the exact match of a plan, from how its row keeps it."""
    return {f"exact_match.{name}": str(value) for name, value in (asked or {}).items() if value is not None}


def sayings(plan: TrainingPlan | None, problem: TunewrightError | None) -> dict[str, str]:
    """What the form says at its fields: what is planned for each, and what is wrong with one, by its label."""
    planned = in_words(planned_values(plan)) if plan else {}
    said = {f"planned-{name}": f"planned: {value}" for name, value in planned.items()}
    field = field_of(problem.param or "") if problem else None
    if problem and field:
        message = problem.message.replace(problem.param or field.name, field.label)
        said[f"wrong-{field.name}"] = _NAMED.sub(lambda found: _LABELS[found[0]], message)
    return said


def field_of(param: str) -> FormField | None:
    """The field of the form that sends a parameter of the API; None for one that it does not send."""
    requested = (field for group in FIELD_GROUPS.values() for field in group)
    return next(
        (
            one
            for one in requested
            if one.name == param or one.name.startswith(f"{param}.") or one.name in param.split(".")
        ),
        None,
    )


def planned_values(plan: TrainingPlan) -> dict[str, str]:
    """What the plan has in each field of the form, as a field takes it. Adapters' fields are left out of full ones."""
    planned = planned_options(plan)
    return _filled({name: planned.get(option.name) for name, option in _OPTIONS.items()})


def asked_values(requested: RequestedConfig, plan: TrainingPlan) -> dict[str, str]:
    """What was asked for, by the form's fields: the rest of a plan follows from its data, and is planned anew."""
    if requested.learning_rate_multiplier is not None:  # the form has the rate itself
        requested = replace(requested, learning_rate=plan.hyperparameters.learning_rate)
    asked = {name: getattr(requested, option.name) for name, option in _OPTIONS.items()}
    return _filled({name: value for name, value in asked.items() if value != _OPTIONS[name].default})


def _filled(values: Mapping[str, object]) -> dict[str, str]:
    return {name: _field(value) for name, value in values.items() if value is not None}


def _field(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def in_words(values: Mapping[str, str]) -> dict[str, str]:
    """The fields' values as people read them: choices by their labels."""
    labels = {field.name: dict(field.choices) for group in FIELD_GROUPS.values() for field in group}
    return {name: labels[name].get(value, value) for name, value in values.items()}


def _columns(fields: Mapping[str, str]) -> dict[str, str]:
    roles = ROLES.get(fields["shape"], ())
    return {role: fields[COLUMN_PREFIX + role] for role in roles if COLUMN_PREFIX + role in fields}


def _value(name: str, text: str) -> object:
    """The text as the schema's type where it reads as one; else the text, for the schema to refuse by name."""
    kind = _OPTIONS[name].type if name in _OPTIONS else None
    if kind is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is str or name in (*_TEXTS, "exact_match.column"):
        return text
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
