"""Where the adapters of a variant start: at factors of their base weights, or with the lengths of their rows.

PEFT takes the factors that a PiSSA or OLoRA adapter starts from out of the base weight, which then is another one: it
is rounded again, to 4 bits in QLoRA, and the adapter fits nothing that a user could download. Here the base stays as
it is, and the layer adds what the adapter was trained away from its start (`lora.py`). That is the same function of
the same parameters, it holds for a 4-bit base too, and as an ordinary adapter of twice the rank it can be published.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn

from planner.memory.adapters import FACTORISED
from planner.setup import InitLoraWeights, TrainingSetup
from worker.training.model.lora import (
    ADAPTER,
    SQUARED_ROWS,
    START_A,
    START_B,
    LoraLayer,
    away_from,
    lora_layers,
    start_of,
    weight_reader,
)

PISSA_ITERATIONS = 16  # of the randomised decomposition, as PEFT's `pissa_niter_16`
Factors = tuple[torch.Tensor, torch.Tensor]  # A [rank, in], B [out, rank]


def initialize(model: PeftModel, setup: TrainingSetup) -> None:
    """Give every LoRA layer of a fresh adapter the start that `setup` asks for. Draws from torch's global generator."""
    for layer in lora_layers(model):
        if setup.init_lora_weights in FACTORISED:
            _start_at_factors(layer, setup.init_lora_weights)
        if setup.use_dora:
            _train_lengths(layer)
    cast(LoraConfig, model.peft_config[ADAPTER]).use_dora = setup.use_dora


def _start_at_factors(layer: LoraLayer, kind: InitLoraWeights) -> None:
    scaling = layer.scaling[ADAPTER]
    weight_a, weight_b = (_parameter(half) for half in (layer.lora_A, layer.lora_B))
    factors = _factors(_weight_of(layer).float(), kind, weight_a.shape[0], scaling)
    for parameter, factor, name in zip((weight_a, weight_b), factors, (START_A, START_B), strict=True):
        parameter.data = factor.to(parameter.dtype)
        layer.register_buffer(name, parameter.detach().clone(), persistent=False)


def _parameter(half: nn.ModuleDict) -> nn.Parameter:
    return half[ADAPTER].get_parameter("weight")


def _train_lengths(layer: LoraLayer) -> None:
    """Make of a LoRA layer what PEFT makes of one with `use_dora`, without the products that it forms to learn lengths:
    the adapter adds nothing yet, so that they are those of the base weight's rows, here in float32."""
    lengths = torch.linalg.vector_norm(_weight_of(layer), dim=1, dtype=torch.float32)
    magnitudes = DoraLinearLayer(fan_in_fan_out=False)
    magnitudes.weight = nn.Parameter(lengths.to(_parameter(layer.lora_A).dtype))
    layer.lora_magnitude_vector[ADAPTER] = magnitudes
    layer.lora_variant[ADAPTER] = DoraLinearVariant()
    layer.use_dora[ADAPTER] = True
    layer.adapter_layer_names = (*layer.adapter_layer_names, "lora_magnitude_vector")
    layer.register_buffer(SQUARED_ROWS, lengths.square(), persistent=False)


def _weight_of(layer: LoraLayer) -> torch.Tensor:
    """The base weight [out, in], dequantized; without values where there are none yet."""
    base = cast(nn.Linear, layer.get_base_layer())
    if base.weight.is_meta:
        return torch.empty(base.out_features, base.in_features, device="meta")
    return weight_reader(base)().detach()


def _factors(weight: torch.Tensor, kind: InitLoraWeights, rank: int, scaling: float) -> Factors:
    """A and B with s B A equal to the best approximation of `weight` [out, in] of that rank (PiSSA), or with B A equal
    to its share in the first columns of its QR decomposition (OLoRA)."""
    if weight.is_meta:
        return weight.new_empty(rank, weight.shape[1]), weight.new_empty(weight.shape[0], rank)
    if kind is InitLoraWeights.PISSA:
        left, singular, right = torch.svd_lowrank(weight, rank, niter=PISSA_ITERATIONS)
        root = (singular / scaling).sqrt()
        return root[:, None] * right.t(), left * root
    # The first columns of Q are those of the first columns' own decomposition, and Q^T W has the first rows of R.
    orthogonal = torch.linalg.qr(weight[:, :rank])[0]
    return orthogonal.t() @ weight, orthogonal


def initial_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The factors that the layers started from, by name: what a checkpoint holds beside the trained parameters."""
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith((START_A, START_B))}


def published_factors(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights`, as PEFT names them, for the base as it is: what an adapter was trained away from its start is an
    ordinary adapter of twice the rank."""
    published = dict(weights)
    for path, layer in model.named_modules():
        start = start_of(layer)
        if start is not None:
            name_a, name_b = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
            published[name_a], published[name_b] = away_from(weights[name_a], weights[name_b], *start)
    return published


def published_config(config: LoraConfig, setup: TrainingSetup) -> LoraConfig:
    """The configuration that fits `published_factors`: twice the rank and the same scale, as PEFT has it for
    `path_initial_model_for_weight_conversion`."""
    if setup.init_lora_weights not in FACTORISED:
        return config
    alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return replace(config, r=2 * config.r, lora_alpha=cast(int, alpha))  # PEFT's own conversion makes it a fraction too
