"""The arithmetic of the automatic plan's regret, and the star of runs around it."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.autoplan import HELD_OUT, STAR, TRAINING, Point, Task, data_sets, find, prepare, rule_rows, table
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """The rule set, for a tiny model."""
    folder = tmp_path_factory.mktemp("autoplan")
    pairs = list(rule_rows(HELD_OUT + TRAINING))
    return prepare(make_tiny_model(folder / "tiny"), folder, "rule", pairs, 2000)


def finished(task: Task, point: Point, loss: float, seed: int = 0, **others: Any) -> dict[str, Any]:
    """A run of the point."""
    return {**task.settings(point), "seed": seed, "loss": loss, **others}


def test_the_star_begins_with_the_plan_and_changes_one_thing_at_a_time(task: Task) -> None:
    assert STAR[0] == Point()
    assert [sum(value != 1.0 for value in vars(point).values()) for point in STAR] == [0, 1, 1, 1, 1, 1]
    settings = [json.dumps(task.settings(point)) for point in STAR]
    assert len(set(settings)) == len(STAR)


def test_a_set_is_split_into_rows_to_score_and_as_many_as_the_tokens_suffice_for(task: Task) -> None:
    held_out, training = (path.read_text().splitlines() for path in (task.held_out, task.training))
    assert len(held_out) == HELD_OUT
    assert len(training) == task.statistics.examples
    assert 0.8 * 2000 < task.statistics.tokens <= 2100
    assert not set(held_out) & set(training)


def test_regret_is_the_plans_loss_over_the_lowest(task: Task) -> None:
    lower, higher = STAR[1], STAR[2]
    results = [
        finished(task, Point(), 1.02),
        finished(task, lower, 1.0),
        finished(task, Point(), 1.0, seed=1),
        finished(task, lower, 1.1, seed=1),
        finished(task, higher, 1.2, seed=1),
        finished(task, lower, 0.1, seed=2),  # nothing to compare it with yet
    ]
    page = table(results, [task])
    own = task.settings(Point())
    shown = f"{own['rate']:.2g}, {own['rank']}, {own['epochs']}"
    assert f"| rule | {own['rows']} | {shown} | 2 | 6 | 1.0% | 2.0% |" in page
    assert "| rate x 0.33 | +4.0% | -2.0% | +10.0% | 2 |" in page
    assert "| rate x 3 | +20.0% | +20.0% | +20.0% | 1 |" in page


def test_a_run_is_found_by_what_it_was_trained_with(task: Task) -> None:
    own = {**task.settings(Point()), "seed": 0}
    run = finished(task, Point(), 1.0, rate=own["rate"] * 1.02)  # a rate as it is rounded from another plan's
    assert find([run], own) is run
    assert find([run | {"rate": own["rate"] * 1.1}], own) is None
    assert find([run | {"alpha": 1}], own) is None


def test_every_set_leaves_rows_to_train_on(tmp_path: Path) -> None:
    sets = dict(data_sets(tmp_path))
    assert list(sets) == ["sample", "rule"]  # the others are not there
    assert all(len(pairs) > HELD_OUT for pairs in sets.values())


def test_the_rule_is_one_rule_and_no_row_is_held_out_and_trained() -> None:
    rows = list(rule_rows(HELD_OUT + TRAINING))
    assert not {asked for asked, _ in rows[:HELD_OUT]} & {asked for asked, _ in rows[HELD_OUT:]}
    for asked, said in rows:
        size = int(asked.split()[1])
        assert said.endswith("the depot.") == (size > 500)
