"""Liger's kernels written in torch: the same mathematics, and gradients written over what was saved as theirs are."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from worker.training.model import liger


def _tanh_gelu(gate: torch.Tensor) -> torch.Tensor:
    return functional.gelu(gate, approximate="tanh")


def _gated(activation: Callable[[torch.Tensor], torch.Tensor], *saved: torch.Tensor) -> torch.Tensor:
    gate, up = saved if len(saved) == 2 else saved[0].chunk(2, dim=-1)
    return activation(gate.float()).to(up.dtype) * up


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Callable[[torch.Tensor], torch.Tensor], *saved: torch.Tensor) -> torch.Tensor:
        ctx.activation = activation
        ctx.save_for_backward(*saved)
        return _gated(activation, *saved)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        leaves = [tensor.detach().clone().requires_grad_() for tensor in saved]
        with torch.enable_grad():
            found = torch.autograd.grad(_gated(ctx.activation, *leaves), leaves, gradient)
        for tensor, own in zip(saved, found, strict=True):
            tensor.data.copy_(own)  # past autograd's version counter, as Triton's kernels write
        return (None, *(tensor.data for tensor in saved))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return _turned(query, key, cos, sin)

    @staticmethod
    def backward(ctx: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return (*_turned(query, key, cos, -sin), None, None)


def _turned(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    heads = [tensor.transpose(1, 2).contiguous() for tensor in (query, key)]
    rotated = apply_rotary_pos_emb(*(tensor.transpose(1, 2) for tensor in heads), cos, sin)
    for tensor, turned in zip(heads, rotated, strict=True):
        tensor.data.copy_(turned.transpose(1, 2))
    return tuple(tensor.data.transpose(1, 2) for tensor in heads)


def _late_cast_norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
    wide = inputs.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale * (offset + weight.float())).to(inputs.dtype)


@contextmanager
def liger_in_torch(**instead: Callable[..., Any]) -> Iterator[None]:
    """Within, Liger's kernels run in torch; some as `instead` says."""
    kernels: dict[str, Callable[..., Any]] = {
        "silu_and_multiply": lambda gate, up: _Gated.apply(functional.silu, gate, up),
        "gelu_and_multiply": lambda gate, up: _Gated.apply(_tanh_gelu, gate, up),
        "silu_and_multiply_halves": lambda gate_up: _Gated.apply(functional.silu, gate_up),
        "rotate": _Rotation.apply,
        "late_cast_norm": _late_cast_norm,
    }
    with ExitStack() as stack:
        for name, kernel in (kernels | instead).items():
            stack.enter_context(patch.object(liger, name, kernel))
        yield
