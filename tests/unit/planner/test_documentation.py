"""docs/planner.md and the code say the same."""

import re
from pathlib import Path

from planner import constants
from planner.model.families import FAMILIES
from planner.published.trainers import Loss
from planner.setup import Method

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_every_constant_is_documented_with_value_unit_and_source():
    rows = {name: (value.strip(), unit.strip(), source.strip()) for name, value, unit, source in ROW.findall(DOCUMENT)}
    in_code = {name: value for name, value in vars(constants).items() if name.isupper()}
    assert set(rows) == set(in_code)
    for name, (value, unit, source) in rows.items():
        assert float(value.replace(",", "")) == in_code[name], name
        assert unit, name
        assert len(source) > 10, f"{name} needs a source or a derivation"


def test_every_constant_is_used():
    code = "".join(path.read_text() for path in (ROOT / "planner").rglob("*.py") if path.name != "constants.py")
    unused = [name for name in vars(constants) if name.isupper() and name not in code]
    assert not unused


def test_families_methods_and_losses_are_all_named():
    for name in (*FAMILIES, *Method, *Loss):
        assert f"`{name}`" in DOCUMENT, name
