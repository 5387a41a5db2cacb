"""Matrix products that are not slow on a CPU without bfloat16 instructions.

Such a CPU (AVX2 alone) has no fast kernel for bfloat16: torch's own loops take 4 times as long as float32 for `x W^T`
and 30 times for `x W`. There both factors are widened for the product and its result is rounded once, as kernels with
such instructions do, which add up in float32 too. Only the widened factors are needed meanwhile: one layer's, or the
output projection's.
"""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

WIDENED_ROWS = 64
# Whether this machine's CPU has instructions that multiply bfloat16 matrices. Asked once: compiled code reads it too.
CPU_HAS_BFLOAT16 = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`inputs weight^T + bias`: [rows, in] and [out, in] give [rows, out]."""
    if _is_slow(len(inputs), weight):
        wide_bias = None if bias is None else bias.float()
        return functional.linear(inputs.float(), weight.float(), wide_bias).to(weight.dtype)
    return functional.linear(inputs, weight, bias)


def product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`left right`: [rows, inner] and [inner, columns] give [rows, columns], in `out` where it is given."""
    if not _is_slow(len(left), right):
        return torch.mm(left, right, out=out)
    result = torch.mm(left.float(), right.float())
    return result.to(right.dtype) if out is None else out.copy_(result)


def _is_slow(rows: int, factor: torch.Tensor) -> bool:
    """For a few rows, as in generation, widening the weights takes longer than the product.

    A dry run plans what the planner counts, on whatever machine it runs. The number of rows is asked for last: code
    that is compiled where it is asked is compiled once more for fewer.
    """
    return (
        not CPU_HAS_BFLOAT16
        and factor.device.type == "cpu"
        and factor.dtype == torch.bfloat16
        and not isinstance(factor, FakeTensor)
        and rows >= WIDENED_ROWS
    )
