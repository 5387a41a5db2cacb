"""The fused LoRA step is PEFT's, value and gradient, and the dense formula's."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from planner.setup import InitLoraWeights, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import setup_for
from worker.training.model.loading import load_for_training
from worker.training.model.lora import cast_tensors, cast_together, fuse_lora_layers

PISSA = InitLoraWeights.PISSA


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


def in_bfloat16(*, together: bool) -> nn.Module:
    """A float32 adapter on a bfloat16 layer, within a model that has a pass."""
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 10)).bfloat16()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"], init_lora_weights=False)
    model: nn.Module = inject_adapter_in_model(config, holder)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    fuse_lora_layers(model)
    if together:
        cast_together(model, model, torch.bfloat16)
    return model


def test_factors_that_are_cast_together_give_the_same_bits_after_every_change_of_the_weights() -> None:
    models = [in_bfloat16(together=together) for together in (False, True)]
    inputs = torch.randn(7, 12).bfloat16()
    for step in range(3):
        found = []
        for model in models:
            first, second = model(inputs), model(2 * inputs)  # two passes before their backward
            (first.float().square().sum() + second.float().sum()).backward()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            found.append([first, second, *(parameter.grad for parameter in trained)])
            for parameter in trained:  # as bitsandbytes' optimizers do: unseen by autograd's version counters
                parameter.data.sub_(0.1 * step * parameter.grad)
                parameter.grad = None
        for apart, together in zip(*found, strict=True):
            assert torch.equal(apart, together)
    with torch.inference_mode():
        assert torch.equal(models[0](inputs), models[1](inputs))
    (apart, together) = models
    assert apart.state_dict().keys() == together.state_dict().keys(), "no checkpoint holds the copies"
    assert {tensor.dtype for tensor in cast_tensors(together)} == {torch.bfloat16}
    assert len(cast_tensors(together)) == 4


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 28), ({"dtype": "float32"}, 0), ({"adapter_dtype": "bfloat16"}, 0), ({"init_lora_weights": PISSA}, 0)],
)
def test_only_what_must_be_cast_has_copies(tiny_model: Path, changes: dict[str, object], count: int) -> None:
    loaded = load_for_training(tiny_model, setup_for(Method.LORA, **changes), 0, torch.device("cpu"))
    assert len(cast_tensors(loaded.model)) == count
