"""RMSNorm in torch's one kernel, proved on the very device before a run relies on it.

transformers writes Llama's norm as six operations, half of them on a float32 copy of the residual stream that autograd
keeps. torch's `rms_norm` is one kernel forward and one backward on CUDA, computes in float32 too and keeps its 16-bit
input. A CPU has no such kernel: there the norms stay as they are.
"""

from collections.abc import Iterator
from dataclasses import replace
from types import MethodType
from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from planner.setup import TrainingSetup
from worker.training.memory import is_out_of_memory
from worker.training.reporting import Reporter

_ROWS = 64
_TOLERANCE = 0.02  # of the largest value: bfloat16 rounds to 0.4%, and the two round in another order


def proved_norms(model: nn.Module, setup: TrainingSetup, reporter: Reporter) -> TrainingSetup:
    """The model's norms fused as `setup` says, and the setup in force: without `fused_norms` where the kernel cannot
    run on this device or is wrong there. The norms then stay as they are, and the probe measures what they take."""
    if not setup.fused_norms:
        return setup
    kinds = {(module.weight.shape, module.weight.dtype): module for module in _norms(model)}
    for module in kinds.values():
        problem = norm_problem(module)
        if problem is not None:
            reporter.warn(
                f"torch's fused RMSNorm {problem}. The model's own code is used instead, which gives the same result, "
                "takes more time and memory, and may lead to a smaller micro-batch."
            )
            return replace(setup, fused_norms=False)
    fuse_norms(model)
    return setup


def fuse_norms(model: nn.Module) -> int:
    """Give every norm that computes as Llama's does the fused forward. Returns how many there are."""
    count = 0
    for module in _norms(model):
        # An instance's attribute, which modules call first; classes and other models stay as they are.
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
        count += 1
    return count


def norm_problem(module: LlamaRMSNorm) -> str | None:
    """How the fused norm and its gradients differ from the module's own code on its device; None where they agree.

    Raises what says that memory ran out.
    """
    weight = module.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    inputs, gradient = (
        torch.randn(_ROWS, *weight.shape, generator=generator, device=weight.device).to(weight.dtype) for _ in range(2)
    )
    inputs.requires_grad_()
    wanted = [inputs, weight] if weight.requires_grad else [inputs]

    def compute(output: torch.Tensor) -> list[torch.Tensor]:
        return [output.detach(), *torch.autograd.grad(output, wanted, gradient)]

    with torch.enable_grad():
        theirs = compute(module(inputs))
        try:
            ours = compute(_forward(module, inputs))
        except (RuntimeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            return f"cannot run on this device ({str(error).splitlines()[0]})"
    for name, mine, other in zip(
        ("output", "gradient of the input", "gradient of the weight"), ours, theirs, strict=False
    ):
        difference = float((mine.float() - other.float()).abs().max() / other.float().abs().max())
        if not difference < _TOLERANCE:
            return f"is wrong on this device: its {name} differs by {difference:.1%}"
    return None


def _norms(model: nn.Module) -> Iterator[LlamaRMSNorm]:
    """The norms whose code is Llama's: transformers copies it into each family that shares it."""
    for module in model.modules():
        if _code(type(module)) == _code(LlamaRMSNorm):
            yield cast(LlamaRMSNorm, module)


def _code(kind: type[nn.Module]) -> tuple[bytes, tuple[str, ...]] | None:
    code = getattr(kind.forward, "__code__", None)
    return (code.co_code, code.co_names) if code is not None else None


def _forward(module: LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    return functional.rms_norm(hidden_states, tuple(weight.shape), weight, module.variance_epsilon)
