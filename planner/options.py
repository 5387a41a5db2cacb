"""The one table of what can be asked of a run: a field of `RequestedConfig` for each option, and all known of it.

Bounds, request bodies, the dashboard's form, the command line's flags, what a plan shows, how a plan is compared with a
request, and the key of a dry run are made from it. An option is added here, decided in `planner/policy/recipe.py` or
`planner/policy/candidates.py`, and obeyed in `worker/training`.
"""

# ruff: noqa: RUF009 - `_option` is `dataclasses.field`, which makes no value
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, Flag, StrEnum, auto
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from planner.errors import InvalidSetupError
from planner.memory.optimizers import OPTIMIZERS
from planner.objectives import Objective
from planner.setup import CheckpointSelection, Hyperparameters, InitLoraWeights, LRScheduler, Method, TrainingSetup

MOST_ROWS = 10**9


class Priority(StrEnum):
    """What decides where several runs fit."""

    AUTO = "auto"  # the least compressed method that fits, full only where the data set is large enough for it
    QUALITY = "quality"  # the least compressed method that fits
    ECONOMY = "economy"  # the cheapest quote that fits


class Decides(Flag):
    """What of a run depends on an option."""

    MEMORY = auto()
    RESULT = auto()
    SPEED = auto()


class Group(StrEnum):
    """Under which heading a form asks for an option."""

    ADAPTER = "Adapter"
    TRAINING = "Training"
    MEMORY = "Memory"
    EVALUATION = "Evaluation"


ADAPTERS = (Method.LORA, Method.QLORA)


@dataclass(frozen=True)
class Option:
    """What is known of an option, but its name, its type and its default, which are its field's."""

    path: str  # where a request says it, e.g. `adapter.r`
    label: str  # of its field in a form
    help: str  # beside that field
    description: str  # in the API's reference
    decides: Decides
    group: Group
    planned: str | None  # where a `TrainingPlan` has what became of it; None: nowhere
    methods: tuple[Method, ...] = tuple(Method)  # others have no such option
    objectives: tuple[Objective, ...] = tuple(Objective)  # nor have those that are not here
    minimum: float | None = None
    above: float | None = None  # a bound that is no value itself, as `below` is
    maximum: float | None = None
    below: float | None = None
    values: tuple[str, ...] = ()  # all that a text may be
    labels: Mapping[str, str] = field(default_factory=dict)  # of its values, in a form
    empty: str = "Automatic"  # what a form says while nothing is asked for
    is_in_form: bool = True
    name: str = ""
    type: type = NoneType  # of a value: bool, int, float, str, an enum, or tuple for several names
    default: Any = None

    def problem_of(self, value: Any) -> str | None:
        """What is wrong with a number, as the end of a sentence that begins with its name."""
        for bound, holds, words in (
            (self.minimum, ge, "at least"),
            (self.above, gt, "above"),
            (self.maximum, le, "at most"),
            (self.below, lt, "below"),
        ):
            if bound is not None and not holds(value, bound):
                limit = f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"
                return f"is {value}; it must be {words} {limit}."
        return None


def _option(path: str, label: str, help: str, description: str, /, default: Any = None, **known: Any) -> Any:
    return field(default=default, metadata={"option": Option(path, label, help, description, default=default, **known)})


_MEMORY, _RESULT, _SPEED = Decides.MEMORY, Decides.RESULT, Decides.SPEED
_ALL = _MEMORY | _RESULT | _SPEED
_SWITCH = {"true": "On", "false": "Off"}


@dataclass(frozen=True)
class RequestedConfig:
    """What the user pins. None leaves the choice to the planner."""

    method: Method | None = _option(
        "adapter.method",
        "Method",
        "How the model is adapted",
        "`full`: every weight. `lora`: adapters on a 16-bit base. `qlora`: adapters on a 4-bit base.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.method",
        labels={"full": "Full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"},
    )
    priority: Priority = _option(
        "priority",
        "Policy",
        "Where several fit",
        "`quality`: the least compressed method that fits. `economy`: the cheapest that fits.",
        default=Priority.AUTO,
        decides=_ALL,
        group=Group.ADAPTER,
        planned=None,
        labels={"quality": "Quality", "economy": "Economy"},
    )
    lora_rank: int | None = _option(
        "adapter.r",
        "Rank",
        "Size of the adapter",
        "Rank of the adapters.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.lora_rank",
        methods=ADAPTERS,
        minimum=1,
        maximum=512,
    )
    lora_alpha: int | None = _option(
        "adapter.lora_alpha",
        "Alpha",
        "Scale of the adapter",
        "Scale of the adapters, over r.",
        decides=_RESULT,
        group=Group.ADAPTER,
        planned="setup.lora_alpha",
        methods=ADAPTERS,
        minimum=1,
        maximum=2048,
    )
    lora_dropout: float | None = _option(
        "adapter.lora_dropout",
        "Dropout",
        "On the adapter's input",
        "Share of an adapted layer's inputs that adapters do not see in a step. Default 0.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.lora_dropout",
        methods=ADAPTERS,
        minimum=0.0,
        maximum=0.9,
    )
    lora_target_modules: tuple[str, ...] | None = _option(
        "adapter.target_modules",
        "Target modules",
        "Names of layers, with commas",
        'Names of linear layers, as in ["q_proj", "v_proj"]. Default: all of the decoder\'s.',
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.lora_target_modules",
        methods=ADAPTERS,
    )
    use_rslora: bool | None = _option(
        "adapter.use_rslora",
        "rsLoRA",
        "Scales by the square root of the rank",
        "Scale by lora_alpha over the square root of r (rank-stabilised LoRA). Default false.",
        decides=_RESULT,
        group=Group.ADAPTER,
        planned="setup.use_rslora",
        methods=ADAPTERS,
        labels=_SWITCH,
    )
    use_dora: bool | None = _option(
        "adapter.use_dora",
        "DoRA",
        "Trains lengths apart from directions",
        "Train the length of every row of an adapted weight apart from its direction. Default false.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.use_dora",
        methods=ADAPTERS,
        labels=_SWITCH,
    )
    init_lora_weights: InitLoraWeights | None = _option(
        "adapter.init_lora_weights",
        "Initialization",
        "Of the adapter",
        "Where adapters start. `pissa` and `olora`: at factors of the base's weights; published as ordinary adapters "
        "of twice the rank, which fit the unchanged base model.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.init_lora_weights",
        methods=ADAPTERS,
        labels={"default": "Default", "pissa": "PiSSA", "olora": "OLoRA"},
    )
    modules_to_save: tuple[str, ...] | None = _option(
        "adapter.modules_to_save",
        "modules_to_save",
        "Layers trained whole: embed_tokens, lm_head or both, with a comma",
        "Trained whole beside the adapters: `embed_tokens`, `lm_head` or both.",
        decides=_ALL,
        group=Group.ADAPTER,
        planned="setup.modules_to_save",
        methods=ADAPTERS,
    )
    n_epochs: int | None = _option(
        "hyperparameters.n_epochs",
        "Epochs",
        "Passes over the data",
        "Passes over the training file.",
        decides=_RESULT | _SPEED,
        group=Group.TRAINING,
        planned="hyperparameters.n_epochs",
        minimum=1,
        maximum=100,
    )
    batch_size: int | None = _option(
        "hyperparameters.batch_size",
        "Batch size",
        "Rows per optimizer step",
        "Examples per optimizer step.",
        decides=_RESULT | _SPEED,
        group=Group.TRAINING,
        planned="setup.effective_batch_size",
        minimum=1,
        maximum=1024,
    )
    learning_rate: float | None = _option(
        "learning_rate",
        "Learning rate",
        "The peak",
        "The peak, after warmup. Not together with `learning_rate_multiplier`.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.learning_rate",
        above=0.0,
        maximum=1.0,
    )
    learning_rate_multiplier: float | None = _option(
        "hyperparameters.learning_rate_multiplier",
        "Learning rate multiplier",
        "Of the planner's own rate",
        "Times the learning rate that the planner takes for the method.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.learning_rate_multiplier",
        above=0.0,
        maximum=100.0,
        is_in_form=False,  # which has the rate itself
    )
    warmup_ratio: float | None = _option(
        "warmup_ratio",
        "Warmup",
        "Share of the steps",
        "Share of the optimizer steps in which the learning rate rises.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.warmup_ratio",
        minimum=0.0,
        below=1.0,
    )
    lr_scheduler_type: LRScheduler | None = _option(
        "lr_scheduler_type",
        "Schedule",
        "How the rate moves behind the warmup",
        "How the learning rate moves, by transformers' names. Default `cosine`; `constant` has no warmup, and "
        "`cosine_with_min_lr` ends at a tenth of the peak.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.lr_scheduler_type",
        labels={
            "cosine": "Cosine",
            "linear": "Linear",
            "constant": "Constant, without warmup",
            "constant_with_warmup": "Constant",
            "cosine_with_min_lr": "Cosine to a tenth",
        },
    )
    weight_decay: float | None = _option(
        "weight_decay",
        "Weight decay",
        "On what is trained",
        "AdamW's, on what is trained.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.weight_decay",
        minimum=0.0,
        below=1.0,
    )
    checkpoint_selection: CheckpointSelection | None = _option(
        "checkpoint_selection",
        "Published model",
        "Of which step",
        "Which step's model is published: that of the lowest validation loss (the default where rows are held out), or "
        "the last.",
        decides=_RESULT,
        group=Group.TRAINING,
        planned="hyperparameters.checkpoint_selection",
        labels={"best": "Lowest loss", "last": "Last step"},
    )
    early_stopping_patience: int | None = _option(
        "early_stopping_patience",
        "Early stopping",
        "Evaluations without a lower loss",
        "End training when the validation loss has not fallen in so many evaluations in a row.",
        decides=_RESULT | _SPEED,
        group=Group.TRAINING,
        planned="hyperparameters.early_stopping_patience",
        minimum=1,
        maximum=100,
        empty="Off",
    )
    torch_compile: bool | None = _option(
        "torch_compile",
        "Compilation",
        "Of the layers, on a GPU; pays in long runs",
        "Compile the decoder layers, on GPUs: slower to start, faster in long runs. Default false.",
        decides=_SPEED,
        group=Group.TRAINING,
        planned="setup.torch_compile",
        labels=_SWITCH,
    )
    max_length: int | None = _option(
        "max_length",
        "Max sequence length",
        "Tokens; what is longer is cut",
        "Tokens per example; what is longer is cut off, counted and reported.",
        decides=_ALL,
        group=Group.MEMORY,
        planned="setup.max_length",
        minimum=16,
        maximum=1_048_576,
    )
    packing: bool | None = _option(
        "packing",
        "Packing",
        "Several examples in one row",
        "Several short examples in one row, each attending to itself only.",
        decides=_ALL,
        group=Group.MEMORY,
        planned="setup.packing",
        objectives=(Objective.SUPERVISED,),
        labels=_SWITCH,
    )
    per_device_train_batch_size: int | None = _option(
        "per_device_train_batch_size",
        "Micro-batch size",
        "Rows at once; the rest is accumulated",
        "Examples at once; the rest of `batch_size` is accumulated.",
        decides=_MEMORY | _SPEED,
        group=Group.MEMORY,
        planned="setup.per_device_train_batch_size",
        minimum=1,
        maximum=1024,
    )
    gradient_checkpointing: bool | None = _option(
        "gradient_checkpointing",
        "Gradient checkpointing",
        "Trades time for memory",
        "Trade time for memory.",
        decides=_MEMORY | _SPEED,
        group=Group.MEMORY,
        planned="setup.gradient_checkpointing",
        labels=_SWITCH,
    )
    optim: str | None = _option(
        "optim",
        "Optimizer",
        "Its states' size",
        "The optimizer, by transformers' name. States in the dtype of what is trained, in float32 or in 8 bits; paged "
        "ones leave the GPU when it is full.",
        decides=_ALL,
        group=Group.MEMORY,
        planned="setup.optimizer",
        values=OPTIMIZERS,
        labels={name: name for name in OPTIMIZERS},
    )
    validation_split: float | None = _option(
        "validation_split",
        "Held out",
        "Of the data, to measure on: a share or a number of rows; 0: none",
        "Held out of the training file to measure on: a share below 1, or a number of rows; 0: none. Which rows is a "
        "function of the file alone. Not together with `validation_file`.",
        decides=_RESULT | _SPEED,
        group=Group.EVALUATION,
        planned="hyperparameters.held_out_rows",
        minimum=0.0,
        maximum=MOST_ROWS,
    )

    @property
    def about_the_adapter(self) -> tuple[str, ...]:
        """Names of the options asked for that only an adapter has."""
        return tuple(
            option.name
            for option in OPTIONS
            if Method.FULL not in option.methods and getattr(self, option.name) not in _UNMARKED
        )

    def without_adapter(self) -> "RequestedConfig":
        """What of this bears on full fine-tuning."""
        return replace(self, **{option.name: option.default for option in OPTIONS if Method.FULL not in option.methods})

    def deciding(self, what: Decides) -> "RequestedConfig":
        """This without the options that nothing of `what` depends on."""
        return replace(self, **{option.name: option.default for option in OPTIONS if not option.decides & what})

    def check_bounds(self) -> None:
        """Raise InvalidSetupError for a number out of its range, and for a name that is not one of those known."""
        for option in OPTIONS:
            value = getattr(self, option.name)
            if value is None:
                continue
            if isinstance(value, (int, float)) and (problem := option.problem_of(value)) is not None:
                raise InvalidSetupError(f"{option.name} {problem}", option.name)
            if option.values and value not in option.values:
                known = ", ".join(option.values)
                raise InvalidSetupError(f"{option.name} is {value!r}; it must be one of {known}.", option.name)


_UNMARKED = (None, 0, False, InitLoraWeights.DEFAULT)  # what full fine-tuning does anyway


def _described() -> tuple[Option, ...]:
    hints = get_type_hints(RequestedConfig)
    return tuple(
        replace(known.metadata["option"], name=known.name, type=_value_type(hints[known.name]))
        for known in fields(RequestedConfig)
    )


def _value_type(hint: Any) -> type:
    kinds = [part for part in get_args(hint) if part is not NoneType] if isinstance(hint, UnionType) else [hint]
    found: type = getattr(kinds[0], "__origin__", kinds[0])
    return found


OPTIONS = _described()
BY_NAME = {option.name: option for option in OPTIONS}


def path_of(name: str) -> str:
    """Where a request says an option, e.g. `adapter.r` for `lora_rank`."""
    return BY_NAME[name].path


def read_value(option: Option, value: Any) -> Any:
    """What a request said of an option, as its field in `RequestedConfig` takes it; None is its default."""
    if value is None:
        return option.default
    if issubclass(option.type, (Enum, tuple)):
        return option.type(value)
    return value


def decisive(setup: TrainingSetup, hyperparameters: Hyperparameters) -> dict[str, object]:
    """What of a run decides its result, by its names: the rest changes its memory, its speed, or only its rounding.

    What has its default is left out, so that a run stays the same run in a release that knows more options.
    """
    options = {option.planned.rpartition(".")[2] for option in OPTIONS if option.planned}
    result = {option.planned.rpartition(".")[2] for option in OPTIONS if option.planned and option.decides & _RESULT}
    undecided = (options - result) | _KERNELS
    found: dict[str, object] = {"batch_size": setup.effective_batch_size}
    for part in (setup, hyperparameters):
        for known in fields(part):
            value = getattr(part, known.name)
            if known.name not in undecided and value != known.default:
                found[known.name] = value
    return found


_KERNELS = {
    "attn_implementation",
    "fused_activation",
    "fused_norms",
    "fused_rotary",
    "gradient_accumulation_steps",
}
