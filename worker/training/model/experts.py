"""Fused three-dimensional expert parameters in 4 bits.

transformers 5 keeps the experts of a mixture as one parameter [experts, out, in]; `load_in_4bit` sees linear layers
only and leaves them in 16 bits, four times the memory. The quantizer here treats them too, one parameter at a time as
the loader reads it, so that the 16-bit model never exists whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from peft.tuners.lora import layer as peft_lora
from torch import nn
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

_QUANTIZER = "tunewright_nf4"


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization for the linear layers and experts of the decoder; head and embeddings stay."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    config.quant_method = _QUANTIZER  # type: ignore[assignment]  # a registered name, as transformers documents
    return config


def quantized_state(module: nn.Module, name: str) -> Any | None:
    """The bitsandbytes QuantState of a 4-bit expert parameter, None for any other parameter."""
    parametrizations = getattr(module, "parametrizations", None)
    if parametrizations is None or name not in parametrizations:
        return None
    first = parametrizations[name][0]
    return first.quant_state if isinstance(first, Bnb4bitParametrization) else None


def expert_parameters(model: nn.Module) -> list[str]:
    """Full names of the fused expert parameters, quantized or not, in the order of the model."""
    names = []
    for path, module in model.named_modules():
        own = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]
        packed = [name for name in getattr(module, "parametrizations", {}) if quantized_state(module, name) is not None]
        names += [f"{path}.{name}" for name in (*own, *packed)]
    return names


class _Nf4Operation(Bnb4bitQuantize):
    def convert(  # type: ignore[override]  # as its own subclasses do: keyword arguments by name
        self,
        input_dict: dict[str, list[torch.Tensor]],
        full_layer_name: str | None = None,
        model: nn.Module | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        linears = {}
        for name, value in input_dict.items():
            module, leaf = get_module_from_name(model, name)
            if not _is_expert(module, leaf):
                linears[name] = value
                continue
            tensor = value[0] if isinstance(value, list) else value
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
            replace_parameter_4bit(module, leaf, compress_statistics=True, quant_type="nf4")
            module._is_hf_initialized = True  # else the loader would draw these weights at random
            if missing_keys is not None:
                missing_keys.discard(name)
        return super().convert(linears, full_layer_name=full_layer_name, model=model, **kwargs)


@register_quantizer(_QUANTIZER)
class _Nf4Quantizer(Bnb4BitHfQuantizer):
    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        module, leaf = get_module_from_name(model, param_name)
        return _is_expert(module, leaf) or super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> Bnb4bitQuantize:
        return _Nf4Operation(self)


def _is_expert(module: nn.Module, leaf: str) -> bool:
    parameter = module._parameters.get(leaf)
    return parameter is not None and parameter.ndim == 3


class _LowRankUpdate(nn.Module):
    """W + s lhs rhs on a parameter [experts, out, in], in one product and without a tensor for the update itself."""

    def __init__(self, lhs: torch.Tensor, rhs: torch.Tensor, scaling: float) -> None:
        super().__init__()
        self.lhs, self.rhs, self.scaling = lhs, rhs, scaling

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)


def _describe_parameter(wrapper: peft_lora.ParamWrapper) -> torch.Tensor:
    """What PEFT reads from a wrapped parameter: its shape, dtype and device, here without dequantizing it."""
    module = wrapper.get_base_layer()
    state = quantized_state(module, wrapper.parameter_name)
    if state is None:
        return getattr(module, wrapper.parameter_name)
    return torch.empty((), dtype=state.dtype, device=state.absmax.device).expand(state.shape)


_activate_plain = peft_lora.ParamWrapper._activate_lora


@contextmanager
def _activate(wrapper: peft_lora.ParamWrapper, active_adapters: list[str]) -> Iterator[None]:
    """Within, the wrapped parameter reads as its weight plus the adapters.

    PEFT 0.21 does this right for plain parameters only. On a quantized one its update is never removed again, and the
    weight without it stays in the cache of the wrapper around it: the forward does not see the adapter, which gets no
    gradient and never learns.
    """
    module, name = wrapper.get_base_layer(), wrapper.parameter_name
    adapters = [adapter for adapter in active_adapters if adapter in wrapper.lora_A]
    if quantized_state(module, name) is None or not adapters:
        with _activate_plain(wrapper, active_adapters):
            yield
        return
    steps = cast(nn.ModuleList, cast(nn.ModuleDict, module.parametrizations)[name])
    for adapter in adapters:
        steps.append(_LowRankUpdate(*wrapper.get_delta_factors(adapter)))
    try:
        with parametrize.cached():
            parametrize._cache.pop((id(module), name), None)
            yield
    finally:
        parametrize._cache.pop((id(module), name), None)
        del steps[-len(adapters) :]


setattr(peft_lora.ParamWrapper, "get_param", _describe_parameter)  # noqa: B010  # a repair of a method, for mypy
setattr(peft_lora.ParamWrapper, "_activate_lora", _activate)  # noqa: B010
