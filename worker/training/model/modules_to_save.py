"""Modules that are trained whole beside an adapter (PEFT's `modules_to_save`): the embedding and the output projection.

Like the adapters' their trained weights are float32 masters; they run in the base's dtype, which is also what is
published, so that a plain reload computes the same.
"""

from collections.abc import Mapping
from functools import partial

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from worker.training.model.lora import ADAPTER


def trained_module(module: nn.Module) -> nn.Module:
    """The module that is trained in the place of `module`: itself, unless PEFT keeps a trained copy beside it."""
    return module.modules_to_save[ADAPTER] if isinstance(module, ModulesToSaveWrapper) else module


def train_in_base_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Let every module that is trained whole take and give tensors of `dtype`, whatever its own weights are in."""
    for wrapper in [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]:
        module = trained_module(wrapper)
        if isinstance(module, nn.Linear):
            module.forward = partial(_project, module, dtype)  # type: ignore[method-assign]  # modules call it first
        else:
            module.forward = partial(_embed, module, dtype)


def _project(module: nn.Linear, dtype: torch.dtype, inputs: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.to(dtype)
    return nn.functional.linear(inputs, module.weight.to(dtype), bias)


def _embed(module: nn.Module, dtype: torch.dtype, *inputs: torch.Tensor) -> torch.Tensor:
    """Looked up before it is cast, so that the gradients of a token's every occurrence add up in the master's dtype."""
    embedded: torch.Tensor = type(module).forward(module, *inputs)
    return embedded.to(dtype)


def published_modules(
    model: nn.Module, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """`weights`, as PEFT names them, with whole modules in `dtype`. A tied one is there under both its names, since
    PEFT asks for both, and is one weight again when it is loaded."""
    published = dict(weights)
    for path, wrapper in model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for name, parameter in trained_module(wrapper).named_parameters():
                published[f"{path}.{name}"] = parameter.detach().to("cpu", dtype, copy=True)  # none may share a storage
    return published
