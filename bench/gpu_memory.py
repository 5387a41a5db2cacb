"""Predicted and measured memory of our training step on the GPU at hand, over a grid of sizes, methods and shapes.

    .venv/bin/python bench/gpu_memory.py [--grid small|full] [--json FILE]

Every run is a fresh process: random weights, the loop's own forward, loss, backward and optimizer step, three times.
Printed are predicted and measured peak of allocated bytes with the error, the predicted use of the device with its
bound against what NVML reports, and beside them `accelerate estimate-memory`'s rule. Runs that the planner says do
not fit are left out. A 70B model in 4 bits and a mixture run under a cap of 48 GB where the card is larger.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.db.plain import from_plain, to_plain  # noqa: E402
from planner.catalogue import find_model  # noqa: E402
from planner.devices import Device, read_devices  # noqa: E402
from planner.memory import estimate_memory  # noqa: E402
from planner.model_spec import ModelSpec  # noqa: E402
from planner.setup import Method, Quantization, TrainingSetup  # noqa: E402

STEPS = 3
GIB = 1 << 30
CAP_BYTES = 48 * GIB
NO_GPU = 3  # exit code
SMALL = ("smollm2-135m-instruct", "qwen2.5-0.5b-instruct")
FULL = (*SMALL, "llama-3.2-1b-instruct", "llama-3.2-3b-instruct", "qwen2.5-7b-instruct", "llama-3.1-8b")
CAPPED = ("mixtral-8x7b-instruct-v0.1", "llama-3.3-70b-instruct")


@dataclass(frozen=True)
class Measured:
    """What one run took. Bytes."""

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Line:
    """One run of the grid."""

    model: str
    setup: dict[str, Any]
    predicted_bytes: int
    device_bytes: int
    bound_bytes: int
    rule_bytes: int
    measured: Measured

    @property
    def error(self) -> float:
        """Predicted over measured peak, minus 1."""
        return self.predicted_bytes / self.measured.peak_allocated_bytes - 1

    @property
    def is_covered(self) -> bool:
        """Whether the device held no more than predicted plus bound."""
        return self.measured.device_bytes <= self.device_bytes + self.bound_bytes


def grid(size: str) -> Iterator[tuple[str, TrainingSetup, int | None]]:
    """Model, setup and cap of each run."""
    for model in SMALL if size == "small" else FULL:
        for method in Method:
            for length, rows in ((512, 4), (2048, 1)) if size == "small" else ((512, 8), (2048, 2), (8192, 1)):
                for checkpointed in (False, True):
                    yield model, setup_of(method, rows, length, checkpointed=checkpointed), None
    if size == "full":
        for model in CAPPED:
            yield model, setup_of(Method.QLORA, 1, 1024, checkpointed=True), CAP_BYTES


def setup_of(method: Method, rows: int, length: int, *, checkpointed: bool) -> TrainingSetup:
    """A plan of each method as the policy would make it."""
    setup = TrainingSetup(
        method, per_device_train_batch_size=rows, max_length=length, gradient_checkpointing=checkpointed
    )
    if method is Method.FULL:
        return setup
    quantization = Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None
    return replace(
        setup, quantization=quantization, lora_rank=16, lora_alpha=32, lora_target_modules=("all-linear",),
        adapter_dtype="float32",
    )  # fmt: skip


def run_here(model: str, setup: TrainingSetup, cap_bytes: int | None, device_name: str) -> Measured:
    """Three real steps in this process."""
    import torch

    from bench.random_weights import load_random
    from worker.training.batches import choose_layout
    from worker.training.forward import score
    from worker.training.libraries import quiet
    from worker.training.memory import MemoryWatch
    from worker.training.optimizer import build_optimizer, clip_gradients, gradient_norm
    from worker.training.rehearsal import HYPERPARAMETERS, longest_batch

    quiet()
    device = torch.device(device_name)
    watch = MemoryWatch(device, cap_bytes)
    entry = find_model(model)
    assert entry is not None, f"{model} is not in the catalogue"
    loaded = load_random(entry.config, setup, device)
    batch = longest_batch(setup, choose_layout(cuts_attention=loaded.cuts_attention)).to(device)
    optimizer = build_optimizer(loaded.parameters, setup, HYPERPARAMETERS)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(STEPS):
        loss, _hits = score(loaded, batch, batch.trained_tokens)
        loss.backward()
        clip_gradients(loaded.parameters, 1.0, gradient_norm(loaded.parameters))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    report = watch.report("end")
    return Measured(report.peak_allocated_bytes, report.peak_reserved_bytes, report.device_bytes)


def run_apart(model: str, setup: TrainingSetup, cap_bytes: int | None) -> Measured:
    """The same in a fresh process. Raises CalledProcessError."""
    asked = json.dumps({"model": model, "setup": to_plain(setup), "cap_bytes": cap_bytes})
    command = [sys.executable, __file__, "--one", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(size: str, device: Device) -> Iterator[Line]:
    """Every run of the grid that should fit."""
    for model, setup, cap_bytes in grid(size):
        entry = find_model(model)
        assert entry is not None
        spec = ModelSpec.from_config(entry.config)
        predicted = estimate_memory(spec, setup, device)
        if predicted.required_bytes > min(device.free_bytes, cap_bytes or device.free_bytes):
            continue
        try:
            measured = run_apart(model, setup, cap_bytes)
        except subprocess.CalledProcessError as error:
            print(f"{model} {setup.method}: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        yield Line(
            model, to_plain(setup), predicted.peak_allocated_bytes, predicted.device_bytes, predicted.bound_bytes,
            8 * spec.parameters, measured,
        )  # fmt: skip


def show(line: Line) -> str:
    """A row of the table."""
    setup = line.setup
    shape = f"{setup['per_device_train_batch_size']} x {setup['max_length']}"
    checkpointing = "yes" if setup["gradient_checkpointing"] else "no"
    return (
        f"| {line.model} | {setup['method']} | {shape} | {checkpointing} | {line.predicted_bytes / GIB:.2f} | "
        f"{line.measured.peak_allocated_bytes / GIB:.2f} | {line.error:+.1%} | "
        f"{(line.device_bytes + line.bound_bytes) / GIB:.2f} | {line.measured.device_bytes / GIB:.2f} | "
        f"{'yes' if line.is_covered else 'NO'} | {line.rule_bytes / line.measured.peak_allocated_bytes - 1:+.0%} |"
    )


def main() -> int:
    """Run the grid, or with --one a single run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=("small", "full"), default="full")
    parser.add_argument("--json", type=Path, help="also write every figure here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda:0", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        asked = json.loads(options.one)
        setup = from_plain(TrainingSetup, asked["setup"])
        print(json.dumps(asdict(run_here(asked["model"], setup, asked["cap_bytes"], options.device))))
        return 0
    device = next((device for device in read_devices() if device.kind == "cuda"), None)
    if device is None:
        print("There is no CUDA device on this machine: nothing was measured.", file=sys.stderr)
        return NO_GPU
    print(f"{device.name}, GiB\n")
    names = "model|method|rows x length|checkpointing|predicted|measured|error|with bound|device|held|accelerate's rule"
    print(f"| {names.replace('|', ' | ')} |")
    print("|---" * 11 + "|")
    lines = []
    for line in measure(options.grid, device):
        lines.append(line)
        print(show(line), flush=True)
    errors = [abs(line.error) for line in lines]
    if errors:
        print(f"\n{len(lines)} runs: mean error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}, ", end="")
        print(f"{sum(line.is_covered for line in lines)} within the bound")
    if options.json:
        options.json.write_text(json.dumps({"device": device.name, "runs": [asdict(line) for line in lines]}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
