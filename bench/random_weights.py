"""Models with random weights on a real device, built from `config.json` module by module: nothing is downloaded, and a
4-bit model never exists in 16 bits."""

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization
from torch import nn
from transformers import PreTrainedModel

from planner.setup import TrainingSetup
from worker.training.dry_run.fake_model import build_base, read_config, replace_parameters
from worker.training.model.loading import LoadedModel, make_trainable, takes_varlen_attention, use_varlen_attention

DEVIATION = 0.02  # of the weights: transformers' initializer_range


def random_base(config: Mapping[str, Any], setup: TrainingSetup, device: torch.device) -> PreTrainedModel:
    """What `load_base` returns, with random weights."""
    base = build_base(read_config(config), setup)
    _materialise(base, getattr(torch, setup.dtype), device)
    return base


def load_random(config: Mapping[str, Any], setup: TrainingSetup, device: torch.device) -> LoadedModel:
    """What `load_for_training` returns, with random weights."""
    loaded = make_trainable(random_base(config, setup, device), setup, device)
    return use_varlen_attention(loaded) if takes_varlen_attention(setup, device.type) else loaded


def _materialise(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give every parameter and buffer of a meta model memory and values, one at a time."""
    replace_parameters(model, lambda module, parameter: _random(module, parameter, dtype, device))
    for module in model.modules():
        parametrizations = getattr(module, "parametrizations", {})
        for name in list(parametrizations):
            _pack_experts(parametrizations[name], dtype, device)
        if type(module).__name__.endswith("RotaryEmbedding"):  # computes its buffers when it is built
            fresh = type(module)(module.config)
            for name, buffer in fresh.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.ones(buffer.shape, dtype=buffer.dtype, device=device)


def _random(module: nn.Module, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    if isinstance(parameter, Params4bit):
        assert isinstance(module, Linear4bit)
        whole = torch.empty(module.out_features, module.in_features, dtype=dtype, device=device).normal_(0, DEVIATION)
        packed = Params4bit(whole, requires_grad=False, compress_statistics=True, quant_type="nf4", module=module)
        return packed.to(device)
    values = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    if parameter.dtype.is_floating_point:
        values.normal_(0, DEVIATION) if parameter.ndim > 1 else values.fill_(1.0)
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def _pack_experts(steps: Any, dtype: torch.dtype, device: torch.device) -> None:
    first = steps[0]
    if not isinstance(first, Bnb4bitParametrization):
        return
    whole = torch.empty(first.quant_state.shape, dtype=dtype, device=device).normal_(0, DEVIATION)
    packed, state = functional.quantize_4bit(whole, compress_statistics=True, quant_type="nf4")
    steps.original = nn.Parameter(packed, requires_grad=False)
    first.quant_state = state
