"""The arithmetic of the automatic plan's regret, and its grid."""

from pathlib import Path
from typing import Any

from bench.autoplan import HELD_OUT, PLANNED, TRAINING, data_sets, grid, rule_rows, table


def row(name: str, seed: int, point: str, loss: float | None) -> dict[str, Any]:
    return {"set": name, "seed": seed, "point": point, "loss": loss}


def test_the_grid_begins_with_the_plan_and_has_each_point_once() -> None:
    points = list(grid())
    assert points[0] == PLANNED
    assert len({point.name for point in points}) == len(points) == 18
    changed = [sum(value != 1.0 for value in vars(point).values()) for point in points]
    assert changed == sorted(changed)


def test_regret_is_the_plans_loss_over_the_lowest() -> None:
    results = [
        row("rule", 0, "the plan", 1.02),
        row("rule", 0, "rate x 0.33", 1.0),
        row("rule", 1, "the plan", 1.0),
        row("rule", 1, "rate x 0.33", 1.1),
        row("gsm8k", 0, "the plan", 2.0),  # nothing to compare it with yet
        row("alpaca", 0, "the plan", 2.0),
        row("alpaca", 0, "rate x 3", None),  # failed
    ]
    page = table(results)
    assert "| rule | 2 | 2 | 1.0% | 2.0% | rate x 0.33; the plan |" in page
    assert "| all | | | 1.0% | 2.0% | |" in page
    assert "| rate x 0.33 | +4.0% | +10.0% | 2 |" in page
    assert "gsm8k" not in page
    assert "alpaca" not in page


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
