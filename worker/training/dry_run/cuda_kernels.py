"""The kernels that CUDA would choose where a CPU has others, for fake tensors that stand on a CPU."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from worker.training.model import attention, liger
from worker.training.model import cross_entropy as loss


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Within, attention, fused kernels, dropout and the loss keep what they keep on CUDA.

    `scaled_dot_product_attention` runs FlashAttention without a mask, the memory-efficient kernel with one, as torch
    chooses on Ampere and later for bfloat16 (sdp_utils.cpp, `select_sdp_backend`); a CPU's kernel copies shared key
    heads for every query head. Examples end to end go through FlashAttention's kernels for variable lengths. Dropout
    keeps a mask of one byte an element (Dropout.cpp, `native_dropout`); a CPU's keeps one of the input's dtype. The
    names are replaced rather than intercepted by a mode of torch's, since modes do not reach what checkpointing
    recomputes during a backward pass.
    """
    replaced = (
        (functional, "scaled_dot_product_attention", _attention),
        (attention, "takes_flash", lambda _query: True),
        (loss, "runs_on_cuda", lambda _weight: True),
        (functional, "dropout", _dropout),
        (functional, "rms_norm", _rms_norm),
        (liger, "late_cast_norm", lambda inputs, weight, _epsilon, _offset: _FusedNorm.apply(inputs, weight)),
        (liger, "rotate", _Rotation.apply),
        (liger, "silu_and_multiply", _GatedActivation.apply),
        (liger, "gelu_and_multiply", _GatedActivation.apply),
        (liger, "silu_and_multiply_halves", _GatedHalves.apply),
    )
    with ExitStack() as stack:
        for module, name, stand_in in replaced:
            stack.enter_context(patch.object(module, name, stand_in))
        yield


def _rms_norm(
    inputs: torch.Tensor, normalized_shape: tuple[int, ...], weight: torch.Tensor, eps: float
) -> torch.Tensor:
    del normalized_shape, eps
    outputs: torch.Tensor = _FusedNorm.apply(inputs, weight)
    return outputs


class _FusedNorm(torch.autograd.Function):
    """What `aten::_fused_rms_norm` keeps: its input, its weight and one float32 a row (layer_norm_kernel.cu)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        scales = inputs.new_empty((*inputs.shape[: -weight.dim()], 1), dtype=torch.float32)
        ctx.save_for_backward(inputs, weight, scales)
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        inputs, weight, _scales = ctx.saved_tensors
        return torch.empty_like(inputs), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _Rotation(torch.autograd.Function):
    """What `LigerRopeFunction` does: everything in place, where heads lie side by side (liger_kernel/ops/rope.py)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return tuple(_side_by_side(heads) for heads in (query, key))

    @staticmethod
    def backward(_ctx: Any, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _side_by_side(query), _side_by_side(key), None, None


def _side_by_side(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


class _GatedActivation(torch.autograd.Function):
    """What `LigerSiLUMulFunction` and `LigerGELUMulFunction` keep: gate and up, written over with their gradients."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gate, up = ctx.saved_tensors
        return gate.view_as(gate), up.view_as(up)


class _GatedHalves(torch.autograd.Function):
    """The same of `LigerFusedGateUpSiLUMulFunction`, whose gate and up are one tensor."""

    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> torch.Tensor:
        (gate_up,) = ctx.saved_tensors
        return gate_up.view_as(gate_up)


def _dropout(inputs: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    del inplace  # nothing in a decoder layer drops in place
    outputs: torch.Tensor = torch.native_dropout(inputs, p, training)[0] if training and p > 0 else inputs
    return outputs


def _attention(
    query: torch.Tensor,  # [batch, heads, length, head_dim]
    key: torch.Tensor,  # [batch, kv_heads, length, head_dim]
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    assert enable_gqa or key.shape[1] == query.shape[1], "heads are shared only where the caller says so"
    if attn_mask is None:
        outputs = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )
        return outputs[0]
    bias = attn_mask
    if bias.dtype == torch.bool:  # convert_boolean_attn_mask of attention.cpp
        bias = torch.where(bias, torch.zeros((), dtype=query.dtype), torch.full((), float("-inf"), dtype=query.dtype))
    bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    outputs = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )
    return outputs[0]
