"""`TRITON_INTERPRET=1 python -m tests.unit.training.liger_interpreted`: Liger's own kernels on a CPU, in float32, each
against what it takes the place of: output and gradients. Prints the names of those that agree.

Triton 3.7's interpreter lacks two things that these kernels use, and is given them: scalar arguments as tensors, whose
methods the kernels call, and two functions of CUDA's library. In bfloat16 it computes wrongly.
"""

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from triton.runtime import interpreter

from worker.training.model import liger

_convert = interpreter._implicit_cvt
TOLERANCE = 1e-5


def convert(argument: object) -> object:
    """An argument of a kernel as the interpreter takes it, numbers too."""
    if not isinstance(argument, float):
        return _convert(argument)
    handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)


def compare(name: str, ours: Callable[..., object], theirs: Callable[..., object], *shapes: tuple[int, ...]) -> None:
    """Output and gradients of both, of the same inputs. Raises AssertionError where they differ."""
    torch.manual_seed(0)
    drawn, found = [torch.randn(shape) for shape in shapes], []
    for function in (theirs, ours):
        leaves = [tensor.clone().requires_grad_() for tensor in drawn]
        outputs = function(*(1 * leaf for leaf in leaves))  # what is written in place is no leaf
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        gradients = [torch.randn(output.shape) for output in outputs]
        values = [output.detach().clone() for output in outputs]
        found.append([*values, *torch.autograd.grad(outputs, leaves, gradients)])
    for other, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=TOLERANCE, atol=TOLERANCE)
    print(name)


def main() -> None:
    """Every kernel that `worker.training.model.liger` has."""
    rows = (2, 7)
    compare("silu", liger.silu_and_multiply, lambda gate, up: functional.silu(gate) * up, (*rows, 48), (*rows, 48))
    compare(
        "gelu",
        liger.gelu_and_multiply,
        lambda gate, up: functional.gelu(gate, approximate="tanh") * up,
        (*rows, 48),
        (*rows, 48),
    )
    compare(
        "halves",
        liger.silu_and_multiply_halves,
        lambda both: functional.silu(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1],
        (*rows, 96),
    )
    embedding = LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4))
    cos, sin = embedding(torch.empty(0), torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]]))

    def by(rotate: Callable[..., object]) -> Callable[..., object]:
        return lambda query, key: rotate(query.transpose(1, 2), key.transpose(1, 2), cos, sin)

    compare("rotary", by(liger.rotate), by(apply_rotary_pos_emb), (*rows, 4, 16), (*rows, 2, 16))
    norm = GemmaRMSNorm(48)
    nn.init.uniform_(norm.weight)
    compare("norm", lambda x: liger.late_cast_norm(x, norm.weight, norm.eps, 1.0), norm, (*rows, 48))


if __name__ == "__main__":
    with (
        patch.object(interpreter, "_implicit_cvt", convert),
        patch.object(geglu, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1),
        patch.object(rms_norm, "rsqrt", lambda x: 1 / tl.sqrt(x)),
    ):
        main()
