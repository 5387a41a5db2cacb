"""Every reason that a plan can have is a sentence, and every sentence is some reason's."""

import ast
import re
from pathlib import Path

from core.db.serialization import deserialize, serialize
from planner import wording
from planner.plans import TrainingPlan
from planner.reasons import reason
from planner.setup import InitLoraWeights, LRScheduler, Method
from tests.unit.planner.test_policy import CPU, SMALL, planned

ROOT = Path(wording.__file__).parents[1]
MADE_IN = ("planner/policy/explanations.py", "planner/policy/recipe.py", "planner/schedule.py", "core/plans/service.py")


def made() -> set[str]:
    """The codes in calls of `reason`, those that end in a value spelled out."""
    codes = set[str]()
    for name in MADE_IN:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reason":
                codes |= set(re.findall(r"'(\w+)'", ast.unparse(node.args[0])))
    endings = {"decay_": LRScheduler, "starts_at_": InitLoraWeights, "cut_at_": ("max_length", "context")}
    return codes | {start + end for start, ends in endings.items() for end in ends}


def test_each_code_has_a_sentence_and_each_sentence_a_code() -> None:
    parts = {"starts_at_default", "decay_", "starts_at_", "cut_at_"}
    named = {"float16", "float32", "usual_for_full", "usual_for_adapters", "times_usual", "many_times_usual"}
    assert (made() | named) - parts == set(wording.SENTENCES)


def test_a_plan_is_kept_as_data_and_said_in_words() -> None:
    chosen = planned("smollm2-135m-instruct", CPU)
    kept = deserialize(TrainingPlan, serialize(chosen))
    assert kept == chosen
    assert wording.sentences(kept.reasons) == wording.sentences(chosen.reasons)
    assert wording.why(kept.reasons, "method").startswith("Too little data for full fine-tuning")
    assert wording.why(planned("llama-3.1-8b", "H200", SMALL, method=Method.LORA).reasons, "method") == "As you asked"


def test_a_plan_of_an_earlier_release_has_the_sentences_themselves() -> None:
    plain = serialize(planned("smollm2-135m-instruct", CPU)) | {"reasons": ["LoRA: it fits."]}
    old = deserialize(TrainingPlan, plain)
    assert wording.sentences(old.reasons) == ["LoRA: it fits."]
    assert wording.why(old.reasons, "method") == ""


def test_sizes_times_and_numbers_are_read_as_people_say_them() -> None:
    parts = (reason("too_few_to_tell", telling=20),)
    then = (reason("best_step_published"),)
    said = wording.sentence(reason("measured_on_file", rows=1, few=parts, then=then))
    assert said == (
        "The loss is measured on 1 row of the validation file; fewer than 20 are too few to tell two runs apart. "
        "The model of the lowest loss among the evaluations is published."
    )
    needs = wording.sentence(reason("lacks_memory", missing=3 << 29))
    assert needs == "needs 1.5 GiB more than is free"
