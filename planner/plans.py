"""What a plan consists of. Plain data throughout."""

from dataclasses import dataclass
from operator import attrgetter

from planner.devices import Device
from planner.memory.estimate import MemoryEstimate
from planner.options import OPTIONS, Option
from planner.reasons import Said
from planner.setup import Hyperparameters, Method, TrainingSetup
from planner.throughput import SpeedEstimate


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
    reason: Said


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
    reasons: tuple[Said, ...]
    alternatives: tuple[Alternative, ...]
    device_count: int = 1  # devices like `device`, of one machine


def planned_options(plan: TrainingPlan) -> dict[str, object]:
    """What became of each option, by its name. None: its method or objective has no such option, or it is off."""
    setup = plan.setup

    def has(option: Option) -> bool:
        return setup.method in option.methods and setup.objective in option.objectives

    return {
        option.name: attrgetter(option.planned)(plan) if has(option) else None
        for option in OPTIONS
        if option.planned is not None
    }
