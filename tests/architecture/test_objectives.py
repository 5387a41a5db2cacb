"""What is learned is said in one folder of the trainer and one line of the planner: nothing else names an objective."""

import ast
from pathlib import Path

import pytest

from planner.objectives import SPECS, Objective
from worker.training.objectives.registry import OBJECTIVES

ROOT = Path(__file__).parents[2]
SPOKEN = {  # where an objective has to be named
    "planner/objectives.py",  # what it costs and measures
    "planner/setup.py",  # the default of a plan
    "planner/options.py",  # which options it has
    "worker/training/objectives/registry.py",  # the list
    "api/planning.py",  # OpenAI's `method.type`
    "api/schemas/hyperparameters.py",
    "api/schemas/jobs.py",
    "api/schemas/examples.py",
}
SOURCES = sorted(
    path for folder in ("planner", "core", "api", "worker", "cli") for path in (ROOT / folder).rglob("*.py")
)


def mentions(source: str, objective: Objective) -> list[int]:
    """The lines that name the objective: as a member, as a text of its own, or by importing from its folder."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr == objective.name)
        or (isinstance(node, ast.Constant) and node.value == objective.value)
        or (isinstance(node, ast.ImportFrom) and f".objectives.{objective.value}" in (node.module or ""))
    ]


@pytest.mark.parametrize("objective", list(Objective))
def test_no_code_but_its_own_names_an_objective(objective: Objective) -> None:
    own = ROOT / "worker" / "training" / "objectives" / objective.value
    assert own.is_dir()
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        if own not in path.parents and str(path.relative_to(ROOT)) not in SPOKEN
        for line in mentions(path.read_text(encoding="utf-8"), objective)
    }
    assert not found


def test_the_rule_sees_each_way_of_naming_one() -> None:
    source = (
        "from worker.training.objectives.supervised.rows import load_data\nx = Objective.SUPERVISED\ny = 'supervised'"
    )
    assert mentions(source, Objective.SUPERVISED) == [1, 2, 3]


def test_each_objective_has_both_its_sides() -> None:
    assert set(SPECS) == set(OBJECTIVES) == set(Objective)
