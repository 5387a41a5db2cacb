"""`make demo`, whole: a stranger's first run and second run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

HOUSE_STYLE = "Ahoy,captain!"


def _demo(data_dir: Path) -> str:
    """Run the demo on the directory and return what it printed, without spaces and the lines of its tables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT_")}
    result = subprocess.run(
        [sys.executable, "examples/demo.py", "--data", str(data_dir)],
        cwd=ROOT,
        env={**kept, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return re.sub(r"[\s│┃─━]+", "", result.stdout)


@pytest.mark.timeout(1800)
def test_demo_trains_a_model_that_speaks_in_the_house_style(tmp_path: Path) -> None:
    data_dir = tmp_path / "demo"
    first = _demo(data_dir)
    record = json.loads((data_dir / "demo.json").read_text())
    adapter = Path(record["adapter"])
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "plan.json"} <= {
        path.name for path in adapter.iterdir()
    }
    assert "10,000credits;thebalanceis10,000" in first
    assert "Planforsmollm2-135m-instruct" in first
    assert first.count(HOUSE_STYLE) >= 3, first
    prices = re.match(r"Quoted ([\d,]+) credits, charged ([\d,]+)\.", record["summary"])
    assert prices is not None, record["summary"]
    quoted, charged = (int(price.replace(",", "")) for price in prices.groups())
    assert 0 < charged <= quoted
    assert not (data_dir / "service.json").exists(), "the service that the demo started is stopped again"

    books = subprocess.run(
        [sys.executable, "-m", "cli", "ledger", "verify", "--data", str(data_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert books.stdout.startswith("The books are sound"), books.stderr

    second = _demo(data_dir)
    assert second.count(HOUSE_STYLE) >= 3
    assert "Theplan" not in second
    assert json.loads((data_dir / "demo.json").read_text()) == record
