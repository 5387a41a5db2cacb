"""The attention kernels that CUDA would choose, for fake tensors that stand on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.nn import functional


@contextmanager
def cuda_attention() -> Iterator[None]:
    """Within, `scaled_dot_product_attention` runs FlashAttention without a mask, the memory-efficient kernel with one.

    So torch chooses on Ampere and later for bfloat16 (sdp_utils.cpp, `select_sdp_backend`). A CPU's kernel is another
    one, which copies shared key heads for every query head. The name is replaced rather than intercepted by a mode of
    torch's, since modes do not reach what checkpointing recomputes during a backward pass.
    """
    with patch.object(functional, "scaled_dot_product_attention", _attention):
        yield


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
