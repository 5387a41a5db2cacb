"""How much held-out loss the automatic plan leaves: its regret over data sets, against a star of runs around it.

    .venv/bin/python bench/autoplan.py var/demo/models/smollm2-135m-instruct [--data DIRECTORY] [--tokens 3100]

Each data set is planned as a user would have it planned who pins nothing; then its rate, rank and epochs are pinned to
other values, one after another. Every run is a whole job through the training child, which holds rows out and publishes
the best checkpoint as a job does; what it published is loaded with transformers and PEFT and scored on 100 rows that no
job saw. Regret is the plan's loss there over the lowest of all runs of that set and seed, minus 1. To be done on a CPU
in hours, not days, a set is its shortest rows, under a system message of one word, up to --tokens to train on. Runs are
kept in --out by what was trained with, not by what was planned: the next call goes on where the last one ended, also
after the recipe has changed. The table of what there is so far is printed every time.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.datasets.encoding import load_encoder  # noqa: E402
from core.datasets.formats import to_example  # noqa: E402
from core.datasets.measurement import measure_tokens  # noqa: E402
from planner.devices import read_devices  # noqa: E402
from planner.model.spec import ModelSpec  # noqa: E402
from planner.options import RequestedConfig  # noqa: E402
from planner.plans import TrainingPlan  # noqa: E402
from planner.policy.candidates import Question  # noqa: E402
from planner.policy.choice import plan  # noqa: E402
from planner.statistics import DatasetStatistics  # noqa: E402
from tests.unit.training.runs import CHAT, request_for, run_child  # noqa: E402
from worker.fork_server import warm_up  # noqa: E402
from worker.protocol import ErrorReport, MetricsReport, ResultReport  # noqa: E402

SAMPLE = ROOT / "core" / "datasets" / "samples" / "lanternfish_support.jsonl"
HELD_OUT, TRAINING = 100, 240  # rows; a smaller set is trained on what the held-out rows leave
SCORED_AT_ONCE = 8  # rows
SYSTEM = "Answer."  # instead of the model's own, which would be half of a short row
_PARTS = {"blue": "the harbour", "green": "the mill", "red": "the tower", "white": "the market"}

Pairs = list[tuple[str, str]]
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A run, as multiples of what was planned."""

    rate: float = 1.0
    rank: float = 1.0
    epochs: float = 1.0

    @property
    def name(self) -> str:
        """What differs from the plan."""
        different = [f"{key} x {value:.2g}" for key, value in vars(self).items() if value != 1.0]
        return ", ".join(different) or "the plan"


STAR = (  # what tells most comes first
    Point(),
    Point(rate=1 / 3),
    Point(rate=3.0),
    Point(rank=4.0),
    Point(epochs=2.0),
    Point(epochs=0.5),
)


@dataclass(frozen=True)
class Task:
    """A data set, split and measured."""

    name: str
    model: Path
    spec: ModelSpec
    training: Path
    held_out: Path
    statistics: DatasetStatistics

    def planned(self, point: Point) -> TrainingPlan:
        """The automatic plan, or the same with the point's values pinned."""
        own = plan(Question(self.spec, self.statistics, read_devices()[:1], RequestedConfig(), {"default": 1}))
        if point == Point():
            return own
        rank, rate = own.setup.lora_rank or 0, own.hyperparameters.learning_rate
        pinned = RequestedConfig(
            learning_rate=float(f"{rate * point.rate:.2g}"),
            lora_rank=round(rank * point.rank) or None,
            n_epochs=max(1, round(own.n_epochs * point.epochs)),
        )
        return plan(Question(self.spec, self.statistics, read_devices()[:1], pinned, {"default": 1}))

    def settings(self, point: Point) -> dict[str, Any]:
        """What a run of the point is known by."""
        planned = self.planned(point)
        return {
            "set": self.name,
            "rows": self.statistics.examples,
            "rate": planned.hyperparameters.learning_rate,
            "rank": planned.setup.lora_rank,
            "alpha": planned.setup.lora_alpha,
            "epochs": planned.n_epochs,
            "batch": planned.setup.effective_batch_size,
        }


def main() -> None:
    """Run what is left of the star while there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "datasets", help="GSM8K, Alpaca")
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "autoplan.jsonl", help="runs so far")
    parser.add_argument("--tokens", type=int, default=100_000, help="of each set's rows to train on, at most")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no further run is begun")
    parser.add_argument("--seeds", type=int, default=1, help="how many of each point")
    parser.add_argument("--points", type=int, default=len(STAR), help="how many of the star, in its order")
    parser.add_argument("--sets", help="their names, with commas between them; all of them otherwise")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = [row for row in read(options.out) if "error" not in row]  # what failed is tried again
    warm_up()
    ends_at = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="autoplan-") as directory:
        found = data_sets(options.data)
        tasks = [prepare(options.model, Path(directory), name, pairs, options.tokens) for name, pairs in found]
        wanted = [task for task in tasks if not options.sets or task.name in options.sets.split(",")]
        for seed, point, task in product(range(options.seeds), STAR[: options.points], wanted):
            if find(results, settings := task.settings(point) | {"seed": seed}) is not None:
                continue
            if time.monotonic() > ends_at:
                break
            results.append(settings | run(task, point, seed))
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(f"\n{results[-1]}\n{table(results, tasks)}", flush=True)
        print(table(results, tasks))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of earlier calls."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def find(results: Iterable[Result], settings: Result) -> Result | None:
    """The run with these settings; rates that differ by their rounding are one."""

    def is_it(row: Result) -> bool:
        others = all(row[key] == value for key, value in settings.items() if key != "rate")
        return others and abs(row["rate"] / settings["rate"] - 1) < 0.04

    return next((row for row in results if is_it(row)), None)


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


def prepare(model: Path, folder: Path, name: str, pairs: Pairs, tokens: int) -> Task:
    """The shortest rows of a set in their order in the file: 100 to score, then as many as the tokens suffice for."""
    encoder = load_encoder(model)
    by_length = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    shortest = write(folder / f"{name}-shortest.jsonl", [pairs[index] for index in by_length[: HELD_OUT + TRAINING]])
    summed = list(accumulate(measure_tokens(shortest, CHAT, encoder).statistics.token_lengths))
    means = [(size - HELD_OUT, total / size) for size, total in enumerate(summed, 1) if size >= HELD_OUT + 2]
    rows = max(rows for rows, mean_tokens in means if rows * mean_tokens <= tokens)
    kept = [pairs[index] for index in sorted(by_length[: HELD_OUT + rows])]
    held_out = write(folder / f"{name}-held-out.jsonl", kept[:HELD_OUT])
    training = write(folder / f"{name}.jsonl", kept[HELD_OUT:])
    spec = ModelSpec.from_config(json.loads((model / "config.json").read_text(encoding="utf-8")))
    return Task(name, model, spec, training, held_out, measure_tokens(training, CHAT, encoder).statistics)


def write(path: Path, pairs: Pairs) -> Path:
    """The pairs as conversations."""
    rows = [[("system", SYSTEM), ("user", asked), ("assistant", said)] for asked, said in pairs]
    turns = [[{"role": role, "content": content} for role, content in row] for row in rows]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns), encoding="utf-8")
    return path


def run(task: Task, point: Point, seed: int) -> dict[str, Any]:
    """One job, and how what it published does. Its losses and speed, or its error."""
    with tempfile.TemporaryDirectory(prefix="autoplan-run-") as directory:
        planned = task.planned(point)
        request = request_for(task.model, task.training, Path(directory), planned.setup)
        request = replace(request, hyperparameters=planned.hyperparameters, seed=seed, sample_count=0)
        done = run_child(request)
        if not (result := done.of(ResultReport)):
            said = [f"{error.code}: {error.message}" for error in done.of(ErrorReport)]
            return {"error": "; ".join(said) or f"exit code {done.exit_code}"}
        [said] = result
        loss = held_out_loss(task, Path(directory) / "export" / "adapter")
    speeds = [each.tokens_per_second for each in done.of(MetricsReport) if each.valid_loss is None]
    return {
        "loss": round(loss, 5),
        "own_rows": planned.hyperparameters.held_out_rows,
        "published_step": said.published_step,
        "steps": said.steps,
        "tokens": said.processed_tokens,
        "tokens_per_second": round(mean(speeds), 1),
        "seconds": round(said.train_seconds),
        "predicted_tokens_per_second": round(planned.speed.tokens_per_second, 1),
        "predicted_seconds": round(planned.speed.seconds),
    }


@torch.inference_mode()
def held_out_loss(task: Task, adapter: Path | None) -> float:
    """Mean loss in nats per trained token of the rows that no job saw, as plain transformers and PEFT have it."""
    base = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval() if adapter else base.eval()
    encoder = load_encoder(task.model)
    lines = task.held_out.read_text(encoding="utf-8").splitlines()
    rows = [encoder.encode(to_example(json.loads(line), number, CHAT)) for number, line in enumerate(lines, 1)]
    rows.sort(key=lambda row: len(row.input_ids))
    loss, scored = 0.0, 0
    for start in range(0, len(rows), SCORED_AT_ONCE):
        batch = rows[start : start + SCORED_AT_ONCE]
        ids = pad_sequence([torch.tensor(row.input_ids) for row in batch], batch_first=True)
        trained = pad_sequence([torch.tensor(row.completion_mask) for row in batch], batch_first=True)[:, 1:]
        logits = model(input_ids=ids).logits[:, :-1]  # padding is on the right, where no trained token looks
        loss += float(cross_entropy(logits[trained], ids[:, 1:][trained], reduction="sum"))
        scored += int(trained.sum())
    return loss / scored


def table(results: Sequence[Result], tasks: Sequence[Task]) -> str:
    """Regret by data set, and what each change does to the loss, over the runs so far."""
    lines = [
        "| data set | rows | rate, rank, epochs | seeds | runs | mean regret | worst | best (rate, rank, epochs) |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    regrets: list[float] = []
    changes: dict[str, list[float]] = {}
    for task in tasks:
        own = task.settings(Point())
        of_set = [row for row in results if row["set"] == task.name and row["rows"] == own["rows"]]
        found, best = [], []
        for seed in dict.fromkeys(row["seed"] for row in of_set):
            runs = [row for row in of_set if row["seed"] == seed]
            if (planned := find(runs, own | {"seed": seed})) is None or len(runs) < 2:
                continue
            lowest = min(runs, key=lambda row: float(row["loss"]))
            found.append(planned["loss"] / lowest["loss"] - 1)
            best.append(_shown(lowest))
            for point in STAR[1:]:
                if (other := find(runs, task.settings(point) | {"seed": seed})) is not None:
                    changes.setdefault(point.name, []).append(other["loss"] / planned["loss"] - 1)
        if found:
            regrets += found
            shown = "; ".join(dict.fromkeys(best))
            lines.append(
                f"| {task.name} | {own['rows']} | {_shown(own)} | {len(found)} | {len(of_set)} "
                f"| {mean(found):.1%} | {max(found):.1%} | {shown} |"
            )
    if regrets:
        lines.append(f"| all | | | | | {mean(regrets):.1%} | {max(regrets):.1%} | |")
    lines += ["", "| change | loss over the plan's, mean | least | most | runs |", "|---|---|---|---|---|"]
    for name, ratios in changes.items():
        lines.append(f"| {name} | {mean(ratios):+.1%} | {min(ratios):+.1%} | {max(ratios):+.1%} | {len(ratios)} |")
    return "\n".join(lines)


def _shown(settings: Result) -> str:
    return f"{settings['rate']:.2g}, {settings['rank']}, {settings['epochs']}"


if __name__ == "__main__":
    main()
