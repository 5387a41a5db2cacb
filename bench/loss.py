"""The loss of a micro-batch, forward and backward: ours, torch's and Liger's beside one another.

Ours counts right predictions too, which the others do not. Without a GPU the times are a CPU's, and say nothing about
one.

    .venv/bin/python bench/loss.py [--model llama-3.1-8b] [--tokens 8192]
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from planner.catalogue import find_model  # noqa: E402
from planner.model.spec import ModelSpec  # noqa: E402
from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy  # noqa: E402

REPEATS = 3
MIB = 2**20
LossFunction = Callable[[torch.Tensor, nn.Linear, torch.Tensor], torch.Tensor]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3.1-8b", help="an id of the catalogue")
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    entry = find_model(options.model)
    if entry is None:
        raise SystemExit(f"{options.model} is not in the catalogue.")
    spec = ModelSpec.from_config(dict(entry.config))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, spec.hidden_size, dtype=torch.bfloat16, device=device).requires_grad_()
    head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False, dtype=torch.bfloat16, device=device)
    head.requires_grad_(False)
    labels = torch.randint(0, spec.vocab_size, (options.tokens,), device=device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{options.tokens} x {spec.vocab_size} ({options.model}), bfloat16, on {name}\n")
    print("| loss | value | gradient norm | ms | peak, MiB |\n|---|---|---|---|---|")
    for title, function in contenders().items():
        row = measured(title, function, hidden, head, labels) if function else f"| {title} | not here | | | |"
        print(row, flush=True)


def contenders() -> dict[str, LossFunction | None]:
    """By name, each a mean over the tokens; None for what cannot run here: Liger's without its package or a GPU."""
    found: dict[str, LossFunction | None] = {
        "ours, chunked": lambda x, head, y: linear_cross_entropy(x, head, y, len(y), LogitTransform())[0],
        "torch, F.linear_cross_entropy": lambda x, head, y: functional.linear_cross_entropy(x, head.weight, y),
        "torch, whole logits": lambda x, head, y: functional.cross_entropy(head(x).float(), y),
        "Liger, fused linear": None,
    }
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["Liger, fused linear"] = lambda x, head, y: liger_fused_linear_cross_entropy(x, head.weight, y)
    return found


def measured(title: str, function: LossFunction, hidden: torch.Tensor, head: nn.Linear, labels: torch.Tensor) -> str:
    """A row of the table: the fastest of some repetitions."""
    seconds, on_gpu = float("inf"), hidden.is_cuda
    for _ in range(REPEATS + 1):  # the first warms up
        hidden.grad = None
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.monotonic()
        loss = function(hidden, head, labels)
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = min(seconds, time.monotonic() - started)
    peak = f"{(torch.cuda.max_memory_allocated() - before) / MIB:,.0f}" if on_gpu else "not measured"
    assert hidden.grad is not None
    return f"| {title} | {loss.item():.4f} | {float(hidden.grad.float().norm()):.6f} | {1000 * seconds:,.1f} | {peak} |"


if __name__ == "__main__":
    main()
