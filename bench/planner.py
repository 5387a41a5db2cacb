"""How right the planner is, and how fast.

    python bench/planner.py [--cases bench/published_cases.jsonl]

Prints, per group of published runs: how many were answered, the mean and worst absolute error of the peak, the worst
error of the static part, how many fell more than 2% below the measured peak, and the mean error of the speed; next to
it rules of thumb that people use. Then the time of a whole plan with its alternatives, without and with warm caches,
next to that of `accelerate estimate-memory`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from accelerate import init_empty_weights
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.catalogue import models  # noqa: E402
from planner.devices import parse_gpu  # noqa: E402
from planner.errors import DoesNotFitError, PlannerError  # noqa: E402
from planner.memory.estimate import MemoryEstimate, estimate_memory  # noqa: E402
from planner.memory.layers import _lines_of_groups, layers_memory  # noqa: E402
from planner.model.spec import ModelSpec  # noqa: E402
from planner.options import RequestedConfig  # noqa: E402
from planner.policy.candidates import Question  # noqa: E402
from planner.policy.choice import plan  # noqa: E402
from planner.published.cases import Case, read_case  # noqa: E402
from planner.setup import Method  # noqa: E402
from planner.statistics import DatasetStatistics  # noqa: E402
from planner.throughput import tokens_per_second  # noqa: E402

try:
    import vramcalc as vramcalc_package
except ImportError:
    vramcalc_package = None

SHORTFALL = -0.02


@dataclass(frozen=True)
class Run:
    """One published run and its case."""

    id: str
    case: Case
    peak_bytes: int
    static_bytes: int | None
    tokens_per_second: float


def accelerate_rule(case: Case) -> int:
    """`accelerate estimate-memory`: weights, and four times them for training with Adam, whatever the method."""
    return 4 * 2 * case.spec.parameters


def llama_factory_rule(case: Case) -> int:
    """LLaMA-Factory's README: full bf16 18 bytes a parameter halved for pure bf16; LoRA 2, QLoRA 0.6 (7B: 6 GB)."""
    per_parameter = {Method.FULL: 60 / 7, Method.LORA: 16 / 7, Method.QLORA: 6 / 7}[case.setup.method]
    return int(case.spec.parameters * per_parameter)


# unsloth.ai/docs, "Unsloth Requirements": parameters in billions, GB with a 4-bit base, GB with a 16-bit one.
UNSLOTH = (
    (3, 3.5, 8), (7, 5, 19), (8, 6, 22), (9, 6.5, 24), (11, 7.5, 29), (14, 8.5, 33), (27, 22, 64), (32, 26, 76),
    (40, 30, 96), (70, 41, 164), (81, 48, 192), (90, 53, 212), (405, 237, 950),
)  # fmt: skip


def unsloth_table(case: Case) -> int | None:
    """Unsloth's table of requirements, between its rows on a line; it has none for full fine-tuning."""
    if case.setup.method is Method.FULL:
        return None
    column = 1 if case.setup.method is Method.QLORA else 2
    billions = case.spec.parameters / 1e9
    above = next((i for i, row in enumerate(UNSLOTH) if row[0] >= billions), len(UNSLOTH) - 1)
    low, high = UNSLOTH[max(0, above - 1)], UNSLOTH[max(1, above)]
    share = (billions - low[0]) / (high[0] - low[0])
    return int((low[column] + share * (high[column] - low[column])) * 1e9)


def vramcalc(case: Case) -> int | None:
    """The package of that name: training of Llama-like models, 16-bit base. Without its flat overhead for the context,
    since what is compared is allocated memory."""
    if case.setup.method is Method.QLORA:
        return None
    config = {"model_type": case.spec.model_type, "torch_dtype": "bfloat16", **case.config}
    try:
        estimate = vramcalc_package.estimate(
            config,
            mode="train",
            dtype="bf16",
            batch=case.setup.per_device_train_batch_size,
            seq_len=case.setup.max_length,
            lora_rank=case.setup.lora_rank,
            grad_checkpoint=case.setup.gradient_checkpointing,
            precision="pure" if case.setup.method is Method.FULL else "amp",
            attn_impl="flash" if case.setup.attn_implementation == "flash_attention_2" else "sdpa",
            overhead_gb=0.0,
        )
    except vramcalc_package.UnsupportedModelError:
        return None
    return int(estimate.total)


def _estimate(case: Case) -> MemoryEstimate:
    return estimate_memory(case.spec, case.setup, case.device, case.backend)


PREDICTORS: dict[str, Callable[[Case], int | None]] = {
    "planner": lambda case: _estimate(case).peak_allocated_bytes,
    "accelerate estimate-memory's rule": accelerate_rule,
    "LLaMA-Factory's table": llama_factory_rule,
    "Unsloth's table": unsloth_table,
}
if vramcalc_package is not None:
    PREDICTORS["vramcalc 0.1.2"] = vramcalc


def read_runs(path: Path) -> Iterator[Run]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        try:
            case = read_case(row)
        except PlannerError as error:
            print(f"{row['id']}: {error}")
            continue
        measured = row["measured"]
        yield Run(
            row["id"], case, measured["peak_allocated_bytes"], measured["static_allocated_bytes"],
            row["tokens_per_second"],
        )  # fmt: skip


def group_of(run: Run) -> str:
    source = "exact" if run.id.startswith("fms-") else "others"
    kind = "MoE " if run.case.spec.expert_parameters else ""
    return f"{source}: {kind}{run.case.setup.method}"


def accuracy(runs: list[Run]) -> None:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(group_of(run), []).append(run)
        groups.setdefault("exact, all" if run.id.startswith("fms-") else "others, all", []).append(run)
    groups["all"] = runs
    print("| runs | predictor | answered | mean error | worst error | > 2% below | static, worst |")
    print("|---|---|---|---|---|---|---|")
    for name, members in sorted(groups.items()):
        for predictor, predict in PREDICTORS.items():
            if predictor != "planner" and not name.endswith("all"):
                continue
            guesses = [(predict(run.case), run.peak_bytes) for run in members]
            errors = [guess / peak - 1 for guess, peak in guesses if guess is not None]
            if not errors:
                print(f"| {name} | {predictor} | 0 |  |  |  |  |")
                continue
            below = sum(error < SHORTFALL for error in errors)
            static = static_error(members) if predictor == "planner" else ""
            print(
                f"| {name} | {predictor} | {len(errors)} | {mean(map(abs, errors)):.2%} | "
                f"{max(map(abs, errors)):.2%} | {below} | {static} |"
            )


def static_error(runs: list[Run]) -> str:
    known = [(run.case, run.static_bytes) for run in runs if run.static_bytes]
    errors = [abs(_estimate(case).static_allocated_bytes / static - 1) for case, static in known]
    return f"{max(errors):.3%}" if errors else "not measured"


def speed(runs: list[Run]) -> None:
    errors = []
    for case, measured in ((run.case, run.tokens_per_second) for run in runs if run.case.device):
        rate = tokens_per_second(case.spec, case.setup, case.device, case.setup.max_length, case.backend)
        errors.append(abs(rate / measured - 1))
    print(f"\nTokens per second over {len(errors)} runs: mean error {mean(errors):.1%}, worst {max(errors):.1%}")


def timing() -> None:
    statistics = DatasetStatistics(50_000, 50_000 * 400, 50_000 * 200, tuple(range(100, 700, 6)))
    prices = {"default": 2000}
    cold, warm, names = [], [], []
    for model in models():
        spec = ModelSpec.from_config(model.config)
        for gpu in ("RTX 4090", "A100-80GB", "H200"):
            times = []
            for _ in range(3):
                _lines_of_groups.cache_clear()
                layers_memory.cache_clear()
                times.append(timed(spec, statistics, gpu, prices))
            cold.append(min(times))
            warm.append(min(timed(spec, statistics, gpu, prices) for _ in range(3)))
            names.append(f"{model.id} on {gpu}")
    slowest = names[cold.index(max(cold))]
    print(f"\nOne plan with its alternatives, {len(cold)} pairs of model and GPU, best of 3, in milliseconds:")
    print(f"  cold caches: median {median(cold):.1f}, slowest {max(cold):.1f} ({slowest})")
    print(f"  warm caches: median {median(warm):.1f}, slowest {max(warm):.1f}")
    peers = [accelerate_milliseconds(model.config) for model in models()]
    print(f"  accelerate estimate-memory, one figure each: median {median(peers):.1f}, slowest {max(peers):.1f}")


def accelerate_milliseconds(config: Mapping[str, Any]) -> float:
    """What `accelerate estimate-memory` does once it has a model's config.json: builds it without weights, and adds up.

    Best of 2, so that the model's code is imported already.
    """
    times = []
    for _ in range(2):
        start = time.process_time()
        with init_empty_weights():
            model = AutoModel.from_config(AutoConfig.for_model(**config))
        calculate_maximum_sizes(model)
        times.append((time.process_time() - start) * 1000)
    return min(times)


def timed(spec: ModelSpec, statistics: DatasetStatistics, gpu: str, prices: dict[str, int]) -> float:
    device = parse_gpu(gpu)
    start = time.process_time()
    with suppress(DoesNotFitError):  # a refusal looks through all GPUs: it counts too
        plan(Question(spec, statistics, [device], RequestedConfig(), prices))
    return (time.process_time() - start) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=ROOT / "bench" / "published_cases.jsonl")
    options = parser.parse_args()
    if vramcalc_package is None:
        print("vramcalc is not installed: pip install 'tunewright[bench]' compares with it too.\n")
    if options.cases.is_file():
        runs = list(read_runs(options.cases))
        accuracy(runs)
        speed(runs)
    else:
        print(f"No published runs at {options.cases}: accuracy is left out.")
    timing()


if __name__ == "__main__":
    main()
