"""A run that is made again keeps what was asked for, and leaves the rest to its new plan."""

from dataclasses import replace

import pytest

from api.dashboard.form import asked_values, body_of, suffix_of
from api.planning import plan_request
from core.errors import InvalidRequestError
from planner.catalogue import find_model
from planner.devices import parse_gpu
from planner.model.spec import ModelSpec
from planner.options import Priority, RequestedConfig
from planner.plans import TrainingPlan
from planner.policy.candidates import Question
from planner.policy.choice import plan
from planner.setup import CheckpointSelection, InitLoraWeights, Method
from planner.statistics import DatasetStatistics


def planned(requested: RequestedConfig) -> TrainingPlan:
    entry = find_model("smollm2-135m-instruct")
    assert entry is not None
    statistics = DatasetStatistics(1000, 60_000, 30_000, (60,) * 100)
    spec = ModelSpec.from_config(entry.config)
    return plan(Question(spec, statistics, [parse_gpu("A100-80GB")], requested, {"default": 2000}))


def test_what_was_left_to_the_planner_stays_open() -> None:
    assert asked_values(RequestedConfig(), planned(RequestedConfig())) == {}


def test_everything_that_was_asked_for_comes_back_as_it_was() -> None:
    asked = RequestedConfig(
        priority=Priority.QUALITY,
        method=Method.LORA,
        lora_rank=4,
        lora_target_modules=("q_proj", "v_proj"),
        use_rslora=True,
        init_lora_weights=InitLoraWeights.PISSA,
        max_length=128,
        batch_size=6,
        n_epochs=2,
        learning_rate=0.0021,
        packing=False,
        validation_split=0.1,
        checkpoint_selection=CheckpointSelection.LAST,
        early_stopping_patience=3,
    )
    fields = asked_values(asked, planned(asked))
    assert plan_request(body_of({"model": "m", "file": "file-1", **fields})).requested == asked


def test_a_multiplied_rate_stays_the_rate_that_it_was() -> None:
    asked = RequestedConfig(learning_rate_multiplier=0.5)
    chosen = planned(asked)
    assert asked_values(asked, chosen) == {"learning_rate": f"{chosen.hyperparameters.learning_rate:g}"}
    assert asked_values(replace(asked, learning_rate_multiplier=None), chosen) == {}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("Mein Süßes Modell", "Mein-Susses-Modell"),
        ("Zażółć Łódź / v2", "Zazolc-Lodz-v2"),
        (" --ok.1_ ", "ok.1"),
        ("Поддержка 2", "2"),
        ("", ""),
    ],
)
def test_a_name_as_people_write_it_becomes_a_suffix(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


def test_a_name_without_any_letter_that_an_id_may_have_is_refused_in_words() -> None:
    with pytest.raises(InvalidRequestError, match="letters from a to z") as caught:
        suffix_of("客服")
    assert caught.value.param == "suffix"
