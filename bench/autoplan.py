"""How much held-out loss the automatic plan leaves: its regret over data sets, seeds and a grid around it.

    .venv/bin/python bench/autoplan.py var/demo/models/smollm2-135m-instruct [--data DIRECTORY] [--seconds 3600]

Each data set is planned as a user would have it planned who pins nothing; then its rate, rank and epochs are pinned to
other values, one after another and together. Every run is a whole job through the training child, which publishes the
best checkpoint, and is scored on the same held-out rows. Regret is the plan's held-out loss over the lowest of the
grid, minus 1. The grid takes hours on a CPU: runs are kept in --out, the next call goes on where the last one ended,
and the table of what there is so far is printed after every run.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.datasets.encoding import load_encoder  # noqa: E402
from core.datasets.measurement import measure_tokens  # noqa: E402
from planner.devices import read_devices  # noqa: E402
from planner.model_spec import ModelSpec  # noqa: E402
from planner.plans import TrainingPlan, Wishes  # noqa: E402
from planner.policy import plan  # noqa: E402
from tests.unit.training.runs import CHAT, request_for, run_child  # noqa: E402
from worker.protocol import ErrorReport, ResultReport  # noqa: E402
from worker.trainer import warm_up  # noqa: E402

SAMPLE = ROOT / "core" / "datasets" / "samples" / "lanternfish_support.jsonl"
HELD_OUT, TRAINING = 100, 240  # rows; a smaller set is trained on what the held-out rows leave
SEEDS = (0, 1, 2)
RATES, RANKS, EPOCHS = (1.0, 1 / 3, 3.0), (1.0, 4.0), (1.0, 0.5, 2.0)  # of the plan's
_PARTS = {"blue": "the harbour", "green": "the mill", "red": "the tower", "white": "the market"}

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Point:
    """A run of the grid, as multiples of what was planned."""

    rate: float = 1.0
    rank: float = 1.0
    epochs: float = 1.0

    @property
    def name(self) -> str:
        """What differs from the plan."""
        different = [f"{key} x {value:.2g}" for key, value in vars(self).items() if value != 1.0]
        return ", ".join(different) or "the plan"


PLANNED = Point()
Result = Mapping[str, Any]


def main() -> None:
    """Run what is left of the grid while there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "datasets", help="GSM8K, Alpaca")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "autoplan.jsonl", help="runs so far")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no further run is begun")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of each point")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = [row for row in read(options.out) if "error" not in row]  # what failed is tried again
    done = {(row["set"], row["seed"], row["point"]) for row in results}
    sets = dict(data_sets(options.data))
    warm_up()
    ends_at = time.monotonic() + options.seconds
    for point, seed, (name, pairs) in product(grid(), SEEDS[: options.seeds], sets.items()):
        if (name, seed, point.name) in done:
            continue
        if time.monotonic() > ends_at:
            break
        results.append({"set": name, "seed": seed, "point": point.name, **run(options.model, pairs, point, seed)})
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(results[-1]) + "\n")
        print(f"\n{results[-1]}\n{table(results)}", flush=True)
    print(table(results))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of earlier calls."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def grid() -> Iterator[Point]:
    """The plan, then one thing changed, then several: what tells most comes first."""
    points = [Point(*values) for values in product(RATES, RANKS, EPOCHS)]
    return iter(sorted(points, key=lambda point: sum(value != 1.0 for value in vars(point).values())))


def data_sets(folder: Path) -> Iterator[tuple[str, Pairs]]:
    """Questions and answers of each set that is here."""
    rows = [json.loads(line)["messages"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    yield "sample", [(turns[-2]["content"], turns[-1]["content"]) for turns in rows]
    yield "rule", list(rule_rows(HELD_OUT + TRAINING))
    gsm8k, alpaca = folder / "gsm8k_test.jsonl", folder / "alpaca_en_demo.json"
    if gsm8k.exists():
        problems = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
        yield "gsm8k", [(row["question"], row["answer"]) for row in problems]
    if alpaca.exists():
        tasks = json.loads(alpaca.read_text(encoding="utf-8"))
        yield "alpaca", [(f"{row['instruction']}\n{row['input']}".strip(), row["output"]) for row in tasks]


def rule_rows(count: int) -> Iterator[tuple[str, str]]:
    """Parcels, and where they go: the colour decides, unless the number is above 500."""
    colours = tuple(_PARTS)
    for number in range(count):
        colour, size = colours[number * 7 % 4], number * 37 % 1000
        place = "the depot" if size > 500 else _PARTS[colour]
        yield f"Parcel {size} is {colour}. Where does it go?", f"Parcel {size} goes to {place}."


def run(model: Path, pairs: Pairs, point: Point, seed: int) -> dict[str, Any]:
    """One job. Its losses, or its error."""
    with tempfile.TemporaryDirectory(prefix="autoplan-") as directory:
        folder = Path(directory)
        kept = pairs[: HELD_OUT + TRAINING]
        held_out = write(folder / "held_out.jsonl", kept[:HELD_OUT])
        training = write(folder / "training.jsonl", kept[HELD_OUT:])
        planned = planned_run(model, training, held_out, point)
        request = request_for(model, training, folder / "run", planned.setup)
        request = replace(
            request, validation_path=str(held_out), hyperparameters=planned.hyperparameters, seed=seed, sample_count=0
        )
        done = run_child(request)
    figures: dict[str, Any] = {
        "rate": planned.hyperparameters.learning_rate,
        "rank": planned.setup.lora_rank,
        "epochs": planned.n_epochs,
    }
    if not (result := done.of(ResultReport)):
        said = [f"{error.code}: {error.message}" for error in done.of(ErrorReport)]
        return figures | {"error": "; ".join(said) or f"exit code {done.exit_code}"}
    [said] = result
    return figures | {
        "before": said.initial_valid_loss,
        "loss": said.final_valid_loss,
        "published_step": said.published_step,
        "steps": said.steps,
        "seconds": round(said.train_seconds),
    }


def planned_run(model: Path, training: Path, held_out: Path, point: Point) -> TrainingPlan:
    """The automatic plan, or the same with the point's values pinned."""
    encoder = load_encoder(model)
    spec = ModelSpec.from_config(json.loads((model / "config.json").read_text(encoding="utf-8")))
    measured = (measure_tokens(path, CHAT, encoder).statistics for path in (training, held_out))
    statistics = next(measured).with_validation(next(measured))
    own = plan(spec, statistics, read_devices()[:1], Wishes(), {"default": 1})
    if point == PLANNED:
        return own
    pinned = Wishes(
        learning_rate=own.hyperparameters.learning_rate * point.rate,
        lora_rank=round((own.setup.lora_rank or 0) * point.rank) or None,
        n_epochs=max(1, round(own.n_epochs * point.epochs)),
    )
    return plan(spec, statistics, read_devices()[:1], pinned, {"default": 1})


def write(path: Path, pairs: Pairs) -> Path:
    """The pairs as conversations."""
    rows = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows), encoding="utf-8")
    return path


def table(results: Iterable[Result]) -> str:
    """Regret by data set, and what each change does to the loss, over the runs so far."""
    losses: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in results:
        if row.get("loss") is not None:
            losses[row["set"], row["seed"]][row["point"]] = row["loss"]
    compared = {key: points for key, points in losses.items() if PLANNED.name in points and len(points) > 1}
    lines = ["| data set | seeds | points | mean regret | worst | best points |", "|---|---|---|---|---|---|"]
    regrets = []
    for name in dict.fromkeys(key[0] for key in compared):
        of_set = [points for key, points in compared.items() if key[0] == name]
        found = [points[PLANNED.name] / min(points.values()) - 1 for points in of_set]
        regrets += found
        best = dict.fromkeys(min(points, key=points.__getitem__) for points in of_set)
        size = max(map(len, of_set))
        lines.append(f"| {name} | {len(of_set)} | {size} | {mean(found):.1%} | {max(found):.1%} | {'; '.join(best)} |")
    if regrets:
        lines.append(f"| all | | | {mean(regrets):.1%} | {max(regrets):.1%} | |")
    lines += ["", "| change | loss over the plan's, mean | worst | runs |", "|---|---|---|---|"]
    changes: dict[str, list[float]] = defaultdict(list)
    for points in compared.values():
        for point, loss in points.items():
            changes[point].append(loss / points[PLANNED.name] - 1)
    for point, ratios in changes.items():
        lines.append(f"| {point} | {mean(ratios):+.1%} | {max(ratios):+.1%} | {len(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
