"""A model as our loader leaves it on its device, built from `config.json` on fake tensors: shapes and bytes, no memory.

Built on the meta device, since PEFT moves modules about, which fake ones refuse; then made fake, tensor by tensor.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from bitsandbytes import functional
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from core.errors import InvalidModelError
from planner.setup import Method, TrainingSetup
from worker.training.model.experts import expert_parameters
from worker.training.model.loading import ROUTERS


def read_config(values: Mapping[str, Any], layers: int | None = None) -> PreTrainedConfig:
    """transformers' configuration of a `config.json`, cut to its first `layers` decoder layers.

    Raises InvalidModelError for an architecture that transformers has no causal language model of.
    """
    values = dict(values)
    model_type = values.pop("model_type", None)
    if layers is not None:
        if values.get("layer_types") is not None:
            values["layer_types"] = values["layer_types"][:layers]
        values["num_hidden_layers"] = layers
    try:
        return AutoConfig.for_model(str(model_type), **values)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(
            f"transformers knows no architecture {model_type!r} with this configuration: {error}.",
            code="unsupported_architecture",
            param="model",
        ) from error


def build_base(config: PreTrainedConfig, setup: TrainingSetup) -> PreTrainedModel:
    """The base model that `load_base` would return, on the meta device: 16-bit, or NF4 for QLoRA.

    Raises InvalidModelError.
    """
    dtype: torch.dtype = getattr(torch, setup.dtype)
    functional.name2qmap.setdefault("dynamic", functional.create_dynamic_map())  # else one of meta tensors stays there
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=setup.unpacked_attention)
        except (ValueError, ImportError) as error:
            raise InvalidModelError(
                f"{config.model_type!r} cannot be built as a causal language model: {error}",
                code="unsupported_architecture",
                param="model",
            ) from error
        if setup.method is Method.QLORA:
            _quantize(model, dtype)
    return model


def _quantize(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Linear layers and experts in NF4, quantized twice, as `experts.nf4_config` does; head and routers stay."""
    head = model.get_output_embeddings()
    linears = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and not path.endswith(ROUTERS)
    ]
    for path, linear in linears:
        parent, _, name = path.rpartition(".")
        quantized = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
        if linear.bias is not None:
            quantized.bias = linear.bias
        setattr(model.get_submodule(parent), name, quantized)
    for path in expert_parameters(model):
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(parent)
        module.get_parameter(name).requires_grad_(False)
        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")
    setattr(model, "is_loaded_in_4bit", True)  # noqa: B010  # PEFT asks


def make_fake(model: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    """Turn a model of meta tensors into one of fake tensors that stand on a CPU. Call within a FakeTensorMode.

    bitsandbytes' own 4-bit parameters cannot be fake: plain ones of the same bytes, with the same state, stand in.
    Returns the statistics of the 4-bit weights, which are no parameters.
    """
    statistics: list[torch.Tensor] = []

    def stand_in(module: nn.Module, parameter: nn.Parameter) -> nn.Parameter:
        if not isinstance(parameter, Params4bit):
            return nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
        assert isinstance(module, Linear4bit)
        weight = _weight_4bit(module, dtype)
        statistics.extend(_tensors_of(weight.quant_state))
        return cast(nn.Parameter, weight)

    replace_parameters(model, stand_in)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
        if isinstance(module, Bnb4bitParametrization):
            state = module.quant_state
            state.absmax, state.code, state.offset = fake(state.absmax), fake(state.code), fake(state.offset)
            state.state2.absmax, state.state2.code = fake(state.state2.absmax), fake(state.state2.code)
            statistics += _tensors_of(state)
    return statistics


def replace_parameters(model: nn.Module, make: Callable[[nn.Module, nn.Parameter], nn.Parameter]) -> None:
    """Put `make(module, parameter)` in the place of every parameter; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = make(module, parameter)
            module._parameters[name] = made[id(parameter)]


def _weight_4bit(linear: Linear4bit, dtype: torch.dtype) -> Any:
    whole = torch.empty(linear.out_features, linear.in_features, dtype=dtype)
    packed, state = functional.quantize_4bit(whole, compress_statistics=True, quant_type="nf4")
    weight: Any = nn.Parameter(packed, requires_grad=False)
    weight.quant_state, weight.compress_statistics, weight.quant_type = state, True, "nf4"
    weight.bnb_quantized = True
    return weight


def _tensors_of(state: functional.QuantState) -> list[torch.Tensor]:
    return [state.absmax, state.offset, state.state2.absmax]


def fake(tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor of the same shape and dtype, on a CPU. Call within a FakeTensorMode."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
