"""What a plan is asked for and what it consists of. Plain data throughout."""

from dataclasses import dataclass, fields
from enum import StrEnum

from planner.devices import Device
from planner.memory import MemoryEstimate
from planner.setup import CheckpointSelection, Hyperparameters, InitLoraWeights, Method, TrainingSetup
from planner.throughput import SpeedEstimate


class Priority(StrEnum):
    """What decides where several runs fit."""

    AUTO = "auto"  # the least compressed method that fits, full only where the data set is large enough for it
    QUALITY = "quality"  # the least compressed method that fits
    ECONOMY = "economy"  # the cheapest quote that fits


@dataclass(frozen=True)
class Wishes:
    """What the user pins. None leaves the choice to the planner."""

    priority: Priority = Priority.AUTO
    method: Method | None = None
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_dropout: float | None = None
    lora_target_modules: tuple[str, ...] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    init_lora_weights: InitLoraWeights | None = None
    modules_to_save: tuple[str, ...] | None = None
    optim: str | None = None  # transformers' name of an optimizer
    max_length: int | None = None
    batch_size: int | None = None  # rows per optimizer step
    per_device_train_batch_size: int | None = None
    gradient_checkpointing: bool | None = None
    n_epochs: int | None = None
    learning_rate: float | None = None
    learning_rate_multiplier: float | None = None  # of the planner's own rate
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    packing: bool | None = None
    torch_compile: bool | None = None  # on GPUs alone
    validation_split: float | None = None  # held out of the training file: a share below 1, or a number of rows
    checkpoint_selection: CheckpointSelection | None = None
    early_stopping_patience: int | None = None  # evaluations in a row without a lower validation loss

    @property
    def about_the_adapter(self) -> tuple[str, ...]:
        """Names of the wishes that only an adapter can fulfil."""
        return tuple(name for name in ADAPTER_WISHES if getattr(self, name) not in _UNMARKED)

    def without_adapter(self) -> "Wishes":
        """These wishes as far as they bear on full fine-tuning."""
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ADAPTER_WISHES}
        return Wishes(**kept)


_UNMARKED = (None, 0, False, InitLoraWeights.DEFAULT)
ADAPTER_WISHES = (
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "modules_to_save",
)


@dataclass(frozen=True)
class Quote:
    """The price of a run and how it follows. The quote is a cap: less is charged when less is used."""

    credits_per_hour: int  # of this device class
    predicted_seconds: float
    margin_seconds: float  # added because a prediction can fall short
    billed_seconds: float  # the two together: what the quote covers
    predicted_credits: int  # for the predicted time alone
    margin_credits: int  # what the margin adds
    credits: int


@dataclass(frozen=True)
class Alternative:
    """One run that was considered."""

    method: Method
    lora_rank: int | None
    gradient_checkpointing: bool
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    optimizer: str
    device: str  # name
    device_class: str
    fits: bool
    required_bytes: int  # predicted device use with its bound
    headroom_bytes: int  # free minus required; negative where it does not fit
    seconds: float
    credits: int
    chosen: bool
    reason: str


@dataclass(frozen=True)
class TrainingPlan:
    """One run, complete: what will be done, what it needs, what it costs, and why."""

    setup: TrainingSetup
    hyperparameters: Hyperparameters
    device: Device
    memory: MemoryEstimate
    speed: SpeedEstimate
    total_steps: int
    n_epochs: int
    quote: Quote
    credits: int
    truncated_examples: int
    truncated_tokens: int
    reasons: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
