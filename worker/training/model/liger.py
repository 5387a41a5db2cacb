"""Liger's Triton kernels (liger-kernel 0.8.5), each as one function of tensors.

They are imported when they are first called: `pip install 'tunewright[gpu]'` brings them, and only a GPU runs them.
"""

import torch


def silu_and_multiply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`. Its backward writes the gradients over `gate` and `up` (`swiglu_backward`)."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # noqa: PLC0415 - see above

    product: torch.Tensor = LigerSiLUMulFunction.apply(gate, up)
    return product


def gelu_and_multiply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The same with GELU by its tanh approximation (`geglu_backward`)."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction  # noqa: PLC0415 - see above

    product: torch.Tensor = LigerGELUMulFunction.apply(gate, up)
    return product


def silu_and_multiply_halves(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu` of the left half of the features times the right half, without a copy of either
    (`swiglu_fused_gate_up_backward`)."""
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction  # noqa: PLC0415 - see above

    rows = gate_up.flatten(0, -2)  # its backward returns a gradient of two dimensions, whatever the input has
    product: torch.Tensor = LigerFusedGateUpSiLUMulFunction.apply(rows, True)  # in place
    return product.unflatten(0, gate_up.shape[:-1])


def rotate(
    query: torch.Tensor,  # [rows, heads, tokens, head_dim], laid out as projections leave it
    key: torch.Tensor,  # [rows, kv_heads, tokens, head_dim]
    cos: torch.Tensor,  # [rows or 1, tokens, head_dim]
    sin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Llama's rotary embedding, in place (`rope_forward`), as its gradient is (`rope_backward`)."""
    from liger_kernel.ops.rope import LigerRopeFunction  # noqa: PLC0415 - see above

    rotated: tuple[torch.Tensor, torch.Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
    return rotated


def late_cast_norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
    """RMSNorm times `offset + weight`, in float32 up to there. Keeps its input and one float32 a row
    (`rms_norm_forward`)."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # noqa: PLC0415 - see above

    # Not in place: where a residual goes around the norm, the gradient that arrives is needed once more.
    normalized: torch.Tensor = LigerRMSNormFunction.apply(inputs, weight, epsilon, offset, "gemma", False)
    return normalized
