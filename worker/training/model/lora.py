"""PEFT's LoRA layers with one fused step instead of ten small ones.

PEFT casts a bfloat16 activation to float32 for float32 adapters and multiplies there: on 2 cores a quarter of the whole
step, and a float32 copy of every activation kept for backward. Here the float32 adapter is the master and is cast
instead, as automatic mixed precision does; products run in the activation's dtype and no extra activation is kept.
All factors of a model are cast together before each pass, for its forward, its recomputation and its backward.
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
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

ADAPTER = "default"  # PEFT's name for the only adapter
START_A, START_B = "start_A", "start_B"  # buffers of a LoRA layer: [rank, in], [out, rank]
CAST_A, CAST_B = "cast_A", "cast_B"  # buffers of a LoRA layer: its factors in the activations' dtype
SQUARED_ROWS = "squared_rows"  # buffer of a DoRA layer: those of its base weight's rows, float32 [out]
LoraLayer = LoraLinear | LoraLinear4bit


@dataclass(frozen=True)
class _Frozen:
    """What of a layer gets no gradient."""

    weight: Callable[[], torch.Tensor]  # [out, in]; dequantized anew at every call where it is quantized
    bias: torch.Tensor | None
    scaling: float
    start: tuple[torch.Tensor, torch.Tensor] | None  # A0 [rank, in], B0 [out, rank]
    casts: tuple[torch.Tensor, torch.Tensor] | None  # A and B in the activations' dtype, where they were cast already
    squared_rows: torch.Tensor | None  # [out], float32

    def factors(self, lora_a: torch.Tensor, lora_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two matrices whose product is added to the weight: A and B, or those of twice the rank."""
        return away_from(lora_a, lora_b, *self.start) if self.start else (lora_a, lora_b)

    def cast_factors(
        self, lora_a: torch.Tensor, lora_b: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same in the activations' dtype."""
        if self.casts is not None:
            return self.casts
        wide_a, wide_b = self.factors(lora_a, lora_b)
        return wide_a.to(dtype), wide_b.to(dtype)


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
        cast_a, cast_b = frozen.cast_factors(lora_a, lora_b, inputs.dtype)
        low = adapted @ cast_a.t()  # [tokens, rank]
        weight = frozen.weight()
        outputs = nn.functional.linear(inputs, weight, frozen.bias if magnitude is None else None)
        outputs.addmm_(low, cast_b.t(), alpha=frozen.scaling)
        plain = stretch = lengths = None
        if magnitude is not None and frozen.squared_rows is not None:
            lengths = row_lengths(frozen.squared_rows, weight, *frozen.factors(lora_a, lora_b), frozen.scaling)
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
        cast_a, cast_b = frozen.cast_factors(lora_a, lora_b, gradient.dtype)
        low_gradient = (gradient @ cast_b).mul_(frozen.scaling)  # [tokens, rank]
        # Of twice the rank, A is in both halves and B in the first.
        both = low_gradient if frozen.start is None else low_gradient[:, :rank] + low_gradient[:, rank:]
        b_gradient = (gradient.t() @ low[:, :rank]).to(lora_b.dtype).mul_(frozen.scaling)
        a_gradient = (both.t() @ adapted).to(lora_a.dtype)
        inputs_gradient = dropped_gradient = None
        if ctx.needs_input_grad[0]:
            inputs_gradient = gradient @ frozen.weight()
            if not ctx.has_dropout:
                inputs_gradient.addmm_(low_gradient, cast_a)
        if ctx.has_dropout and ctx.needs_input_grad[1]:
            dropped_gradient = low_gradient @ cast_a
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


def cast_together(model: nn.Module, backbone: nn.Module, dtype: torch.dtype) -> None:
    """Have the factors of all fused layers cast to `dtype` before each pass through `backbone`: two kernels a layer
    fewer in the forward, the recomputation and the backward pass, for a copy of all factors.

    Not those of an adapter that is trained away from its start, which are formed before they are cast.
    """
    layers = []
    for layer in lora_layers(model):
        halves = _factors_of(layer)
        if start_of(layer) is None and halves[0].dtype != dtype:
            layers.append(layer)
            for name, half in zip((CAST_A, CAST_B), halves, strict=True):
                layer.register_buffer(name, half.detach().to(dtype), persistent=False)
    if layers:
        # At every pass rather than every step: next to a pass it is nothing, and nobody can leave an old copy behind.
        backbone.register_forward_pre_hook(partial(_cast_factors, layers))


def _cast_factors(layers: list[LoraLayer], _backbone: nn.Module, _inputs: object) -> None:
    masters = [half for layer in layers for half in _factors_of(layer)]
    casts = [half for layer in layers for half in cast(tuple[torch.Tensor, torch.Tensor], _casts_of(layer))]
    # The values are the same as long as the weights are: what a pass has kept for its backward is not changed.
    with torch.no_grad(), _unsafe_preserve_version_counter(tuple(casts)):
        torch._foreach_copy_(casts, masters)


def cast_tensors(model: nn.Module) -> list[torch.Tensor]:
    """The factors that are cast together, as they are cast."""
    return [buffer for name, buffer in model.named_buffers() if name.endswith((CAST_A, CAST_B))]


def _casts_of(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not hasattr(module, CAST_A):
        return None
    return cast(torch.Tensor, getattr(module, CAST_A)), cast(torch.Tensor, getattr(module, CAST_B))


def _factors_of(module: LoraLayer) -> tuple[torch.Tensor, torch.Tensor]:
    return module.lora_A[ADAPTER].get_parameter("weight"), module.lora_B[ADAPTER].get_parameter("weight")


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
        _casts_of(module),
        cast("torch.Tensor | None", getattr(module, SQUARED_ROWS, None)),
    )
    lora_a, lora_b = _factors_of(module)
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
