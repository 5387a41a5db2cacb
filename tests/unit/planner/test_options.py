"""The table of options: what is asked for is planned, bounded, and decides what the table says that it decides."""

from dataclasses import replace
from enum import Enum
from typing import Any

import pytest

from planner.catalogue import find_model
from planner.devices import parse_gpu
from planner.errors import InvalidSetupError
from planner.model.spec import ModelSpec
from planner.options import BY_NAME, OPTIONS, Decides, Option, Priority, RequestedConfig, decisive
from planner.plans import TrainingPlan, planned_options
from planner.policy.candidates import Question
from planner.policy.choice import plan
from planner.setup import Method
from planner.statistics import DatasetStatistics

STATISTICS = DatasetStatistics(1000, 60_000, 30_000, (60,) * 100)
NUMBERS = {"lora_dropout": 0.25, "learning_rate": 0.0021, "warmup_ratio": 0.21, "weight_decay": 0.33, "max_length": 48}
NAMES = {"lora_target_modules": ("q_proj",), "modules_to_save": ("lm_head",), "optim": "adamw_8bit"}
PLANNED = [option for option in OPTIONS if option.planned is not None]


def planned(**asked: Any) -> TrainingPlan:
    entry = find_model("smollm2-135m-instruct")
    assert entry is not None
    spec = ModelSpec.from_config(entry.config)
    requested = RequestedConfig(**{"packing": False, **asked})
    return plan(Question(spec, STATISTICS, [parse_gpu("A100-80GB")], requested, {"default": 2000}))


def unusual(option: Option) -> Any:
    """A value that no plan has by itself."""
    usual = planned_options(planned())[option.name]
    if option.type is bool:
        return not usual
    if issubclass(option.type, Enum):
        return next(value for value in reversed(option.type) if value != usual)
    named: Any = (NUMBERS | NAMES).get(option.name)
    return named or option.type(2 if usual != 2 else 4)


@pytest.mark.parametrize("option", PLANNED, ids=lambda option: option.name)
def test_what_is_asked_for_is_what_is_planned(option: Option) -> None:
    value = unusual(option)
    assert planned_options(planned())[option.name] != value
    assert planned_options(planned(**{option.name: value}))[option.name] == value


@pytest.mark.parametrize("option", PLANNED, ids=lambda option: option.name)
def test_a_run_is_another_run_where_an_option_that_decides_its_result_is_another(option: Option) -> None:
    usual = planned()
    changed = {option.name: unusual(option)}
    if option.name == "per_device_train_batch_size":
        changed["batch_size"] = usual.setup.effective_batch_size
    other = planned(**changed)
    is_same = decisive(usual.setup, usual.hyperparameters) == decisive(other.setup, other.hyperparameters)
    assert is_same is not bool(option.decides & Decides.RESULT)


def test_what_an_adapter_alone_has_is_nothing_of_a_full_run() -> None:
    full = planned_options(planned(method=Method.FULL))
    assert {name for name, value in full.items() if value is None and Method.FULL not in BY_NAME[name].methods} == {
        option.name for option in OPTIONS if Method.FULL not in option.methods
    }
    asked = RequestedConfig(lora_rank=4, n_epochs=2, priority=Priority.QUALITY)
    assert asked.without_adapter() == RequestedConfig(n_epochs=2, priority=Priority.QUALITY)
    assert asked.deciding(Decides.MEMORY) == RequestedConfig(lora_rank=4, priority=Priority.QUALITY)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n_epochs": 101}, "n_epochs is 101; it must be at most 100."),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0."),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be above 0."),
        ({"validation_split": float("inf")}, "validation_split is inf; it must be at most 1,000,000,000."),
        ({"warmup_ratio": 1.0}, "warmup_ratio is 1.0; it must be below 1."),
        ({"lora_dropout": 0.95}, "lora_dropout is 0.95; it must be at most 0.9."),
        ({"optim": "lion"}, "optim is 'lion'; it must be one of adamw_torch_fused"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSetupError) as refused:
        planned(**asked)
    assert str(refused.value).startswith(said)
    assert refused.value.option in asked


def test_a_default_of_a_newer_release_leaves_older_runs_what_they_are() -> None:
    chosen = planned()
    assert "early_stopping_patience" not in decisive(chosen.setup, chosen.hyperparameters)
    patient = replace(chosen.hyperparameters, early_stopping_patience=2)
    assert decisive(chosen.setup, patient)["early_stopping_patience"] == 2
