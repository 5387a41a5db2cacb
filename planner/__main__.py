"""`python -m planner estimate --batch FILE.jsonl`: memory of each row, as JSON Lines on standard output."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from planner.errors import PlannerError
from planner.memory.estimate import estimate_memory
from planner.published.cases import read_case

_TOTALS = ("peak_allocated_bytes", "static_allocated_bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 when a row could not be estimated."""
    parser = argparse.ArgumentParser(prog="python -m planner", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    estimate = commands.add_parser("estimate", help="estimate the memory of training runs")
    estimate.add_argument("--batch", type=Path, required=True, help="JSON Lines with id, config, setup, gpu")
    options = parser.parse_args(arguments)
    failed = 0
    with options.batch.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            answer = answer_line(line, number)
            failed += "error" in answer
            sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if failed else 0


def answer_line(line: str, number: int) -> dict[str, object]:
    """The estimate of one row, or what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return {"line": number, "error": f"Line {number} is not JSON: {error.msg} at column {error.colno}."}
    if not isinstance(row, Mapping):
        return {"line": number, "error": f"Line {number} is not an object."}
    try:
        case = read_case(row)
        values = asdict(estimate_memory(case.spec, case.setup, case.device, case.backend))
    except PlannerError as error:
        return {"id": row.get("id"), "line": number, "error": str(error)}
    del values["correction"]  # nothing was learned here
    totals = {name: values.pop(name) for name in _TOTALS}
    return {"id": case.id, **totals, "breakdown": values}


if __name__ == "__main__":
    raise SystemExit(main())
