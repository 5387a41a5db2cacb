"""PEFT's LoRA layers with one fused step instead of ten small ones.

PEFT casts a bfloat16 activation to float32 for float32 adapters and multiplies there: on 2 cores a quarter of the whole
step, and a float32 copy of every activation kept for backward. Here the float32 adapter is the master and is cast
instead, as automatic mixed precision does; products run in the activation's dtype and no extra activation is kept.
Modules, parameters and state dict stay PEFT's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn

_ADAPTER = "default"  # PEFT's name for the only adapter


class _AdaptedLinear(torch.autograd.Function):
    """y = x W^T + b + s (d A^T) B^T with W frozen; d is x, or x after dropout.

    x [tokens, in], W [out, in], A [rank, in], B [out, rank]. Backward, by the product rule, with g the gradient of y:
    dB = s g^T (d A^T), dA = s (g B)^T d, dd = s (g B) A, dx = g W. A quantized W is dequantized anew in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        dropped: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
        weight: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        adapted = inputs if dropped is None else dropped
        low = adapted @ lora_a.to(inputs.dtype).t()  # [tokens, rank]
        outputs = nn.functional.linear(inputs, weight(), bias)
        outputs.addmm_(low, lora_b.to(inputs.dtype).t(), alpha=scaling)
        ctx.save_for_backward(adapted, low, lora_a, lora_b)
        ctx.scaling, ctx.weight, ctx.has_dropout = scaling, weight, dropped is not None
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        adapted, low, lora_a, lora_b = ctx.saved_tensors
        low_gradient = (gradient @ lora_b.to(gradient.dtype)).mul_(ctx.scaling)  # [tokens, rank]
        b_gradient = (gradient.t() @ low).to(lora_b.dtype).mul_(ctx.scaling)
        a_gradient = (low_gradient.t() @ adapted).to(lora_a.dtype)
        inputs_gradient = dropped_gradient = None
        if ctx.needs_input_grad[0]:
            inputs_gradient = gradient @ ctx.weight()
            if not ctx.has_dropout:
                inputs_gradient.addmm_(low_gradient, lora_a.to(gradient.dtype))
        if ctx.has_dropout and ctx.needs_input_grad[1]:
            dropped_gradient = low_gradient @ lora_a.to(gradient.dtype)
        return inputs_gradient, dropped_gradient, a_gradient, b_gradient, None, None, None


def fuse_lora_layers(model: nn.Module) -> int:
    """Give every plain LoRA linear layer of a PEFT model the fused forward. Returns how many there are."""
    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLinear | LoraLinear4bit) and not module.lora_variant.get(_ADAPTER):
            forward = partial(_forward, module, _weight_reader(module.get_base_layer()))
            module.forward = forward  # type: ignore[method-assign]  # an instance's attribute, which modules call first
            fused += 1
    return fused


def _forward(
    module: LoraLinear | LoraLinear4bit, weight: Callable[[], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    dropout = module.lora_dropout[_ADAPTER]
    dropped = dropout(rows) if module.training and not isinstance(dropout, nn.Identity) else None
    outputs = _AdaptedLinear.apply(
        rows,
        dropped,
        module.lora_A[_ADAPTER].weight,
        module.lora_B[_ADAPTER].weight,
        module.scaling[_ADAPTER],
        weight,
        module.get_base_layer().bias,
    )
    return outputs.view(*inputs.shape[:-1], -1)


def _weight_reader(base: nn.Module) -> Callable[[], torch.Tensor]:
    if isinstance(base, Linear4bit):
        return partial(_dequantized, base)
    return partial(base.get_parameter, "weight")


def _dequantized(base: Linear4bit) -> torch.Tensor:
    weight = cast(Params4bit, base.weight)
    return dequantize_4bit(weight.data, weight.quant_state)
