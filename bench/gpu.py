"""First contact with a GPU: does this machine's card run every kind of job, as predicted, and how fast?

Reads the machine as the planner does, measures its rates, runs whole jobs through the service's own training child,
compares predicted with measured memory, and measures tokens per second and utilisation with and without each option
of the planner, TRL's SFTTrainer beside them. Each result is a line of results.jsonl as soon as it is known; at the end
follow a table (report.md) and every figure (report.json). docs/gpu.md says how to read them.

    .venv/bin/python bench/gpu.py [--budget SECONDS] [--only environment,speed] [--out DIRECTORY]

Exit code 3: there is no GPU to measure.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.gpu_check.budget import NO_GPU, STEPS, run_steps  # noqa: E402
from bench.gpu_check.report import write_report  # noqa: E402
from bench.gpu_check.session import Session  # noqa: E402
from planner.devices import Device, read_devices  # noqa: E402
from planner.errors import DriverError  # noqa: E402

BUDGET_SECONDS = 580  # ten minutes with what comes before and after
NAMES = tuple(step.name for step in STEPS)


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that fit into the budget and print the report. Returns the exit code."""
    options = parse(arguments)
    visible = None
    if not options.rehearse:
        found = find_gpu()
        if isinstance(found, str):
            print(found)
            return NO_GPU
        visible = found.uuid or str(found.index)
    session = Session(out=options.out, rehearsing=options.rehearse)
    session.results.unlink(missing_ok=True)
    reason = run_steps(session, [step for step in STEPS if step.name in options.only], options.budget, visible)
    if reason is not None:
        print(reason)
        return NO_GPU
    print(write_report(session))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds for all steps together")
    parser.add_argument("--only", type=_steps, default=NAMES, help=f"with commas, of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "gpu-check", help="a folder for the results")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU: does every step run at all?")
    return parser.parse_args(arguments)


def _steps(text: str) -> tuple[str, ...]:
    unknown = set(text.split(",")) - set(NAMES)
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no step {sorted(unknown)[0]!r}; there are {', '.join(NAMES)}")
    return tuple(text.split(","))


def find_gpu() -> Device | str:
    """The first GPU that the planner sees, or one sentence that says why there is none."""
    try:
        device = read_devices()[0]
    except DriverError as error:
        return f"There is no usable GPU on this machine, nothing was measured: {error}"
    return device if device.kind == "cuda" else "There is no NVIDIA GPU on this machine: nothing was measured."


if __name__ == "__main__":
    raise SystemExit(main())
