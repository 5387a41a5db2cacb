"""A mixture's experts are really in 4 bits, and really trained."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import setup_for
from worker.training.model import experts
from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy
from worker.training.model.experts import expert_parameters, quantized_state
from worker.training.model.loading import LoadedModel, load_base, load_for_training

FAMILIES = ["mixtral", "qwen3_moe", "olmoe"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("mixture") / request.param, family=request.param)


def loss_of(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.arange(3, 35)[None]
    loaded.causal_model.set_attn_implementation("sdpa")
    hidden = loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    loss, _ = linear_cross_entropy(hidden, loaded.head, ids[0, 1:], 31.0, LogitTransform())
    return loss


def test_experts_take_half_a_byte_and_the_router_stays(mixture: Path) -> None:
    model = load_base(mixture, setup_for(Method.QLORA), CPU, "sdpa")
    plain = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.bfloat16)
    names = expert_parameters(model)
    assert sorted(names) == sorted(expert_parameters(plain))
    assert len(names) == 4
    for name in names:
        module = model.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        stored = module.parametrizations[leaf].original
        original = plain.get_parameter(name)
        state = quantized_state(module, leaf)
        assert stored.dtype == torch.uint8
        assert stored.numel() * 2 == original.numel()
        assert state.nested
        error = (dequantize_4bit(stored, state) - original).float().norm() / original.float().norm()
        assert error < 0.12  # NF4's rounding of normal weights
    assert model.get_parameter("model.layers.0.mlp.gate.weight").dtype == torch.bfloat16


def test_the_quantized_model_is_close_to_the_16_bit_one(mixture: Path) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        quantized = load_base(mixture, setup_for(Method.QLORA), CPU, "sdpa")(ids).logits.float()
        plain = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.bfloat16)(ids).logits.float()
    assert (quantized - plain).norm() / plain.norm() < 0.3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_of_a_quantized_mixture_gets_a_gradient(mixture: Path, checkpointing: bool) -> None:
    setup = setup_for(Method.QLORA, gradient_checkpointing=checkpointing)
    loaded = load_for_training(mixture, setup, 0, CPU)
    with torch.no_grad():
        for name, parameter in loaded.parameters:
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    before = float(loss_of(loaded).detach())
    for _ in range(3):
        loss_of(loaded).backward()
    for name, parameter in loaded.parameters:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert float(loss_of(loaded).detach()) == before, "no forward may leave anything behind on the experts"
    module = loaded.causal_model.get_submodule("model.layers.0.mlp.experts").get_base_layer()
    assert all(len(module.parametrizations[name]) == 1 for name in module.parametrizations)


def test_training_on_4_bits_is_peft_on_the_dequantized_weights(mixture: Path) -> None:
    """Same loss and same gradients as plain PEFT with 16-bit experts that hold the values of the 4-bit ones."""
    quantized = load_for_training(mixture, setup_for(Method.QLORA), 0, CPU)
    plain = load_for_training(mixture, setup_for(Method.LORA), 0, CPU)
    with torch.no_grad():
        for (_, ours), (name, theirs) in zip(quantized.parameters, plain.parameters, strict=True):
            if "lora_B" in name:
                ours.normal_(std=0.02)
            theirs.copy_(ours)
        for name, layer in quantized.causal_model.named_modules():
            if isinstance(layer, Linear4bit):
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                plain.causal_model.get_submodule(name).weight.copy_(weight)
        for index in range(2):
            packed, dense = (
                model.causal_model.get_submodule(f"model.layers.{index}.mlp.experts").get_base_layer()
                for model in (quantized, plain)
            )
            for leaf in ("gate_up_proj", "down_proj"):
                getattr(dense, leaf).copy_(getattr(packed, leaf))
    losses = []
    for loaded in (quantized, plain):
        loss = loss_of(loaded)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for (_, ours), (name, theirs) in zip(quantized.parameters, plain.parameters, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_training_leaves_router_and_experts_as_they_are(mixture: Path) -> None:
    """Every adapter moves, and nothing else does, to the bit: neither the router nor the packed experts."""
    loaded = load_for_training(mixture, setup_for(Method.QLORA), 0, CPU)
    trained = {name for name, _ in loaded.parameters}
    assert all("lora_" in name for name in trained)
    assert not any(".gate.lora" in name for name in trained)
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    assert any(name.endswith("mlp.gate.weight") for name in before)
    assert any(tensor.dtype == torch.uint8 and "experts" in name for name, tensor in before.items())
    optimizer = torch.optim.AdamW([parameter for _, parameter in loaded.parameters], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = loss_of(loaded)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name


def test_the_16_bit_experts_never_exist_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 layers, as each parameter of the experts is quantized, those of few are in 16 bits."""
    layers = 16
    model = make_tiny_model(tmp_path / "mixtral", family="mixtral", num_hidden_layers=layers, intermediate_size=256)
    alive: list[int] = []
    quantize = experts.replace_parameter_4bit

    def wide() -> dict[int, torch.Tensor]:
        found = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
        return {x.data_ptr(): x for x in found if x.ndim == 3 and x.dtype == torch.bfloat16 and not x.is_meta}

    others = wide()  # of other tests' models: held, so that none of their places is used again

    def watched(module: nn.Module, name: str, **options: Any) -> None:
        alive.append(sum(tensor.nbytes for place, tensor in wide().items() if place not in others))
        quantize(module, name, **options)

    monkeypatch.setattr(experts, "replace_parameter_4bit", watched)
    loaded = load_base(model, setup_for(Method.QLORA), CPU, "sdpa")
    names = [path.rpartition(".") for path in expert_parameters(loaded)]
    states = [quantized_state(loaded.get_submodule(module), leaf) for module, _, leaf in names]
    assert len(alive) == len(states) == 2 * layers
    whole = sum(2 * state.shape.numel() for state in states if state is not None)
    assert 0 < max(alive) <= 0.25 * whole


def test_an_adapter_of_a_4_bit_mixture_fits_the_16_bit_one(mixture: Path, tmp_path: Path) -> None:
    names = {}
    for method in (Method.LORA, Method.QLORA):
        loaded = load_for_training(mixture, setup_for(method), 0, CPU)
        assert isinstance(loaded.model, PeftModel)
        names[method] = {name: tuple(parameter.shape) for name, parameter in loaded.parameters}
        loaded.model.save_pretrained(tmp_path / method, save_embedding_layers=False)
    assert names[Method.LORA] == names[Method.QLORA]
    base = AutoModelForCausalLM.from_pretrained(mixture, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(base, tmp_path / Method.QLORA)
    state = {name: tensor for name, tensor in adapted.named_parameters() if "lora" in name}
    saved = load_file(tmp_path / Method.QLORA / "adapter_model.safetensors")
    for name, tensor in saved.items():
        module, _, leaf = name.rpartition(".")
        torch.testing.assert_close(state[f"{module}.default.{leaf}"].float(), tensor, rtol=0.01, atol=1e-3)
