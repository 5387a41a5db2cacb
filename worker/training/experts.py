"""Fused three-dimensional expert parameters in 4 bits.

transformers 5 keeps the experts of a mixture as one parameter [experts, out, in]; `load_in_4bit` sees linear layers
only and leaves them in 16 bits, four times the memory. The quantizer here treats them too, one parameter at a time as
the loader reads it, so that the 16-bit model never exists whole.
"""

from typing import Any

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from peft.tuners.lora import layer as peft_lora
from torch import nn
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


class _FactorsProxy(peft_lora._LoraParameterProxy):
    """W + s lhs rhs for [experts, out, in] parameters, in a class that PEFT finds again.

    PEFT 0.21 installs a `_LoraFactorsProxy` there, but removes only `_LoraParameterProxy` from a parameter that is
    quantized as well: each forward would stack one more.
    """

    def __init__(self, lhs: torch.Tensor, rhs: torch.Tensor, scaling: float) -> None:
        nn.Module.__init__(self)
        self.lhs, self.rhs, self.scaling = lhs, rhs, scaling

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(weight, self.lhs, self.rhs, alpha=self.scaling)


def _describe_parameter(wrapper: peft_lora.ParamWrapper) -> torch.Tensor:
    """What PEFT 0.21 reads from a wrapped parameter: its shape, dtype and device.

    Reading a quantized parameter itself dequantizes all experts and, within the enclosing `parametrize.cached()`,
    leaves the plain weight in the cache: the forward then never sees the adapter, and it gets no gradient.
    """
    module = wrapper.get_base_layer()
    state = quantized_state(module, wrapper.parameter_name)
    if state is None:
        return getattr(module, wrapper.parameter_name)
    return torch.empty((), dtype=state.dtype, device=state.absmax.device).expand(state.shape)


setattr(peft_lora, "_LoraFactorsProxy", _FactorsProxy)  # noqa: B010  # a repair, and mypy knows better
setattr(peft_lora.ParamWrapper, "get_param", _describe_parameter)  # noqa: B010
