"""PEFT's LoRA layers with one fused step instead of ten small ones.

PEFT casts a bfloat16 activation to float32 for float32 adapters and multiplies there: on 2 cores a quarter of the whole
step, and a float32 copy of every activation kept for backward. Here the float32 adapter is the master and is cast
instead, as automatic mixed precision does; products run in the activation's dtype and no extra activation is kept.
Modules, parameters and state dict stay PEFT's own.

Two variants are done in the same step. An adapter that started from factors of its base weight (`variants.py`) adds
what it was trained away from them: B A - B0 A0 = (B - B0) A + B0 (A - A0), a product of twice the rank whose rounding
is that of the difference. DoRA scales the rows of the sum to a trained length; their present length comes from
products of rank r, where PEFT forms the whole B A from an identity matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch import nn

ADAPTER = "default"  # PEFT's name for the only adapter
START_A, START_B = "start_A", "start_B"  # buffers of a LoRA layer: [rank, in], [out, rank]
SQUARED_ROWS = "squared_rows"  # buffer of a DoRA layer: those of its base weight's rows, float32 [out]
LoraLayer = LoraLinear | LoraLinear4bit


@dataclass(frozen=True)
class _Frozen:
    """What of a layer gets no gradient."""

    weight: Callable[[], torch.Tensor]  # [out, in]; dequantized anew at every call where it is quantized
    bias: torch.Tensor | None
    scaling: float
    start: tuple[torch.Tensor, torch.Tensor] | None  # A0 [rank, in], B0 [out, rank]
    squared_rows: torch.Tensor | None  # [out], float32

    def factors(self, lora_a: torch.Tensor, lora_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two matrices whose product is added to the weight: A and B, or those of twice the rank."""
        return away_from(lora_a, lora_b, *self.start) if self.start else (lora_a, lora_b)


def away_from(
    lora_a: torch.Tensor, lora_b: torch.Tensor, start_a: torch.Tensor, start_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[2 rank, in] and [out, 2 rank] whose product is B A - B0 A0."""
    return torch.cat([lora_a, lora_a - start_a]), torch.cat([lora_b - start_b, start_b], dim=1)


class _AdaptedLinear(torch.autograd.Function):
    """y = z + b with z = x W^T + s (d A^T) B^T and W frozen; d is x, or x after dropout. DoRA: y = c z + b by rows.

    x [tokens, in], W [out, in], A [rank, in], B [out, rank]. Backward, by the product rule, with g the gradient of z:
    dB = s g^T (d A^T), dA = s (g B)^T d, dd = s (g B) A, dx = g W. A quantized W is dequantized anew in backward.
    DoRA: c = m / |W + s B A| [out], the length taken as constant (Liu et al. 2024, section 4.3).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        dropped: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        magnitude: torch.Tensor | None,
        frozen: _Frozen,
    ) -> torch.Tensor:
        adapted = inputs if dropped is None else dropped
        wide_a, wide_b = frozen.factors(lora_a, lora_b)
        low = adapted @ wide_a.to(inputs.dtype).t()  # [tokens, rank]
        weight = frozen.weight()
        outputs = nn.functional.linear(inputs, weight, frozen.bias if magnitude is None else None)
        outputs.addmm_(low, wide_b.to(inputs.dtype).t(), alpha=frozen.scaling)
        plain = stretch = lengths = None
        if magnitude is not None and frozen.squared_rows is not None:
            lengths = row_lengths(frozen.squared_rows, weight, wide_a, wide_b, frozen.scaling)
            plain, stretch = outputs, (magnitude / lengths - 1).to(inputs.dtype)  # c z = z + (c - 1) z, rounded once
            outputs = torch.addcmul(plain, plain, stretch)
            if frozen.bias is not None:
                outputs += frozen.bias
        ctx.save_for_backward(adapted, low, lora_a, lora_b, plain, stretch, lengths)
        ctx.frozen, ctx.has_dropout = frozen, dropped is not None
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        adapted, low, lora_a, lora_b, plain, stretch, lengths = ctx.saved_tensors
        frozen, rank, magnitude_gradient = ctx.frozen, lora_a.shape[0], None
        if plain is not None:
            magnitude_gradient = (gradient * plain).sum(dim=0, dtype=torch.float32).div_(lengths).to(lora_a.dtype)
            gradient = torch.addcmul(gradient, gradient, stretch)
        wide_a, wide_b = frozen.factors(lora_a, lora_b)
        low_gradient = (gradient @ wide_b.to(gradient.dtype)).mul_(frozen.scaling)  # [tokens, rank]
        # Of twice the rank, A is in both halves and B in the first.
        both = low_gradient if frozen.start is None else low_gradient[:, :rank] + low_gradient[:, rank:]
        b_gradient = (gradient.t() @ low[:, :rank]).to(lora_b.dtype).mul_(frozen.scaling)
        a_gradient = (both.t() @ adapted).to(lora_a.dtype)
        inputs_gradient = dropped_gradient = None
        if ctx.needs_input_grad[0]:
            inputs_gradient = gradient @ frozen.weight()
            if not ctx.has_dropout:
                inputs_gradient.addmm_(low_gradient, wide_a.to(gradient.dtype))
        if ctx.has_dropout and ctx.needs_input_grad[1]:
            dropped_gradient = low_gradient @ wide_a.to(gradient.dtype)
        return inputs_gradient, dropped_gradient, a_gradient, b_gradient, magnitude_gradient, None


def row_lengths(
    squared_rows: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Lengths [out] of the rows of W + s B A, in float32, from products of rank r alone:
    |w + s b A|^2 = |w|^2 + 2 s b (A w) + s^2 b (A A^T) b."""
    lora_a, lora_b = lora_a.float(), lora_b.float()
    crossed = (weight @ lora_a.to(weight.dtype).t()).float()  # [out, rank]
    crossed = 2 * scaling * crossed + scaling**2 * (lora_b @ (lora_a @ lora_a.t()))
    return (squared_rows + (lora_b * crossed).sum(dim=1)).clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()


def start_of(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The factors A0 and B0 that a LoRA layer started from, where it trains away from them."""
    if not hasattr(module, START_A):
        return None
    return cast(torch.Tensor, getattr(module, START_A)), cast(torch.Tensor, getattr(module, START_B))


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """Every LoRA linear layer of a PEFT model, in its order."""
    return [module for module in model.modules() if isinstance(module, LoraLinear | LoraLinear4bit)]


def fuse_lora_layers(model: nn.Module) -> int:
    """Give every LoRA linear layer of a PEFT model the fused forward. Returns how many there are.

    A variant that the step does not do keeps PEFT's own: DoRA without the lengths of the base's rows is one.
    """
    fused = 0
    for module in lora_layers(model):
        if module.lora_variant.get(ADAPTER) and not hasattr(module, SQUARED_ROWS):
            continue
        # An instance's attribute, which modules call first; a method, so that compiled layers share their code.
        module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
        fused += 1
    return fused


def _forward(module: LoraLayer, inputs: torch.Tensor) -> torch.Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    dropout = module.lora_dropout[ADAPTER]
    dropped = dropout(rows) if module.training and not isinstance(dropout, nn.Identity) else None
    magnitude = module.lora_magnitude_vector[ADAPTER].weight if module.lora_magnitude_vector else None
    base = module.get_base_layer()
    frozen = _Frozen(
        weight_reader(base),
        cast("torch.Tensor | None", base.bias),
        module.scaling[ADAPTER],
        start_of(module),
        cast("torch.Tensor | None", getattr(module, SQUARED_ROWS, None)),
    )
    lora_a, lora_b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    outputs = _AdaptedLinear.apply(rows, dropped, lora_a, lora_b, magnitude, frozen)
    return outputs.view(*inputs.shape[:-1], -1)


def weight_reader(base: nn.Module) -> Callable[[], torch.Tensor]:
    """Reads the weight [out, in] of a linear layer, dequantized where it is in 4 bits."""
    if isinstance(base, Linear4bit):
        return partial(_dequantized, base)
    return partial(base.get_parameter, "weight")


def _dequantized(base: Linear4bit) -> torch.Tensor:
    weight = cast(Params4bit, base.weight)
    return dequantize_4bit(weight.data, weight.quant_state)
