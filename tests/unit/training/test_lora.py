"""The fused LoRA step is PEFT's, value and gradient, and the dense formula's."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import setup_for
from worker.training.loading import load_for_training
from worker.training.lora import fuse_lora_layers


def adapted_layer(dropout: float = 0.0, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    holder = nn.ModuleDict({"layer": nn.Linear(12, 10, bias=bias)})
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=["layer"], init_lora_weights=False)
    return inject_adapter_in_model(config, holder)


def gradients(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    output = model["layer"](inputs)  # type: ignore[index]
    wanted = [inputs, *(p for p in model.parameters() if p.requires_grad)]
    return output, list(torch.autograd.grad((output * torch.arange(10)).sum(), wanted))


def test_fused_equals_peft() -> None:
    model = adapted_layer()
    inputs = torch.randn(2, 5, 12, requires_grad=True)
    expected, expected_gradients = gradients(model, inputs)
    assert fuse_lora_layers(model) == 1
    output, ours = gradients(model, inputs)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dropout_is_honoured_in_training_only() -> None:
    model = adapted_layer(dropout=0.5)
    inputs = torch.randn(2, 5, 12, requires_grad=True)
    torch.manual_seed(1)
    expected, expected_gradients = gradients(model.train(), inputs)
    fuse_lora_layers(model)
    torch.manual_seed(1)
    output, ours = gradients(model, inputs)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs)
    first, second = model.eval()["layer"](inputs), model["layer"](inputs)  # type: ignore[index, operator]
    assert torch.equal(first, second)


def test_gradient_of_an_adapter_is_the_dense_formulas() -> None:
    """dL/dA = s B^T G and dL/dB = s G A^T, with G the gradient of the dense weight."""
    model = adapted_layer(bias=False)
    layer = model["layer"]  # type: ignore[index]
    fuse_lora_layers(model)
    lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    inputs, scaling = torch.randn(7, 12), layer.scaling["default"]
    dense = (layer.base_layer.weight + scaling * lora_b @ lora_a).detach().requires_grad_()
    (weight_gradient,) = torch.autograd.grad((inputs @ dense.t()).square().sum(), dense)
    a_gradient, b_gradient = torch.autograd.grad(layer(inputs).square().sum(), [lora_a, lora_b])
    torch.testing.assert_close(a_gradient, scaling * lora_b.t() @ weight_gradient, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b_gradient, scaling * weight_gradient @ lora_a.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_adapters_are_float32_on_a_16_or_4_bit_base(tmp_path: Path, method: Method) -> None:
    model = make_tiny_model(tmp_path / "model")
    loaded = load_for_training(model, setup_for(method), 0, torch.device("cpu"))
    assert {parameter.dtype for _, parameter in loaded.parameters} == {torch.float32}
    projection = loaded.causal_model.get_submodule("model.layers.0.self_attn.q_proj.base_layer")
    expected = torch.bfloat16 if method is Method.LORA else torch.uint8
    assert projection.weight.dtype == expected
    assert loaded.head.weight.dtype == torch.bfloat16
    if method is Method.QLORA:
        assert projection.weight.quant_state.nested, "the scales are quantized too"
