"""One step in this process, as `bench.gpu_check.budget` starts it."""

import argparse
import importlib
from pathlib import Path

from bench.gpu_check.budget import NO_GPU
from bench.gpu_check.session import Session


def main() -> int:
    """Run the step's function, unless torch sees no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("function")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ends-at", type=float, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    session = Session(options.out, options.rehearse, options.name, options.ends_at)
    problem = None if session.rehearsing else torch_problem()
    if problem is not None:
        session.record("torch", error=problem)
        return NO_GPU
    module, function = options.function.split(":")
    getattr(importlib.import_module(f"bench.gpu_check.{module}"), function)(session)
    return 0


def torch_problem() -> str | None:
    """Why torch cannot use the GPU that the driver reports; None where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build of the same version."
    return f"torch {torch.__version__} sees no CUDA device: is the driver too old for CUDA {torch.version.cuda}?"


if __name__ == "__main__":
    raise SystemExit(main())
