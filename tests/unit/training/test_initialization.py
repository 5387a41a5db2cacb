"""DoRA, rank-stabilised LoRA, PiSSA and OLoRA are what their papers and PEFT say, and fit the unchanged base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from core.errors import TrainingError
from planner.setup import InitLoraWeights, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import request_for, setup_for
from worker.training.export.portable import save_adapter
from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy
from worker.training.model.initialization import _factors
from worker.training.model.loading import LoadedModel, load_base, load_for_training
from worker.training.model.lora import ADAPTER, START_A, START_B, lora_layers

CPU = torch.device("cpu")
PISSA, OLORA = InitLoraWeights.PISSA, InitLoraWeights.OLORA
VARIANTS: list[dict[str, Any]] = [
    {"use_dora": True},
    {"use_rslora": True},
    {"init_lora_weights": PISSA},
    {"init_lora_weights": OLORA, "use_rslora": True},
    {"init_lora_weights": PISSA, "use_dora": True, "lora_dropout": 0.1},
]
IDS = torch.arange(3, 60)[None]


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, so that equal formulas give equal numbers."""
    return make_tiny_model(tmp_path_factory.mktemp("exact") / "qwen2", family="qwen2", dtype="float32")


def loaded_with(model: Path, method: Method = Method.LORA, **changes: Any) -> LoadedModel:
    loaded = load_for_training(model, setup_for(method, dtype="float32", **changes), 0, CPU)
    loaded.causal_model.set_attn_implementation("sdpa")
    return loaded


def loss_of(model: Any, head: Any) -> torch.Tensor:
    hidden = model(input_ids=IDS, use_cache=False).last_hidden_state[0, :-1]
    return linear_cross_entropy(hidden, head, IDS[0, 1:], 56.0, LogitTransform())[0]


def train(loaded: LoadedModel, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW([parameter for _, parameter in loaded.parameters], lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = loss_of(loaded.backbone, loaded.head)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits.float()


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes))
def test_a_variant_starts_at_the_base_learns_and_reloads_in_plain_peft(
    exact_model: Path, tmp_path: Path, method: Method, changes: dict[str, Any]
) -> None:
    loaded = loaded_with(exact_model, method, **changes)
    plain = load_base(exact_model, setup_for(method, dtype="float32", use_dora=True), CPU, "sdpa")
    untrained = logits_of(plain)
    torch.testing.assert_close(logits_of(loaded.causal_model), untrained, rtol=1e-5, atol=1e-5)
    loaded.model.train()
    losses = train(loaded)
    assert losses[-1] < losses[0]
    trained = logits_of(loaded.causal_model)
    assert (trained - untrained).norm() > 0.1 * untrained.norm()
    setup = setup_for(method, dtype="float32", **changes)
    save_adapter(loaded, request_for(exact_model, exact_model, tmp_path, setup), tmp_path)
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(plain, tmp_path)),
        trained,
        rtol=2e-3,
        atol=2e-3 * float(trained.abs().max()),
    )
    if method is Method.LORA:
        merged = PeftModel.from_pretrained(load_base(exact_model, setup, CPU, "sdpa"), tmp_path).merge_and_unload()
        torch.testing.assert_close(logits_of(merged), trained, rtol=1e-3, atol=1e-3)


def test_dora_has_pefts_gradients(exact_model: Path, tmp_path: Path) -> None:
    loaded = loaded_with(exact_model, use_dora=True)
    train(loaded)
    setup = setup_for(Method.LORA, dtype="float32", use_dora=True)
    save_adapter(loaded, request_for(exact_model, exact_model, tmp_path, setup), tmp_path)
    base = load_base(exact_model, setup, CPU, "sdpa")
    theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    loss_of(loaded.backbone, loaded.head).backward()
    loss_of(base.base_model, base.get_output_embeddings()).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert sum("lora_magnitude_vector" in name for name in expected) == len(expected) // 3 == 14
    for name, parameter in loaded.parameters:
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_gradients_of_dora_are_the_dense_formulas(exact_model: Path) -> None:
    """y = m (W + s B A) / |W + s B A| x, with the length by rows taken as constant."""
    loaded = loaded_with(exact_model, use_dora=True, init_lora_weights=PISSA)
    train(loaded)
    layer = lora_layers(loaded.model)[4]
    weight, scaling = layer.get_base_layer().weight, layer.scaling[ADAPTER]
    trained = [
        layer.lora_A[ADAPTER].weight,
        layer.lora_B[ADAPTER].weight,
        layer.lora_magnitude_vector[ADAPTER].weight,
    ]
    inputs = torch.randn(7, weight.shape[1], requires_grad=True)
    start = getattr(layer, START_B) @ getattr(layer, START_A)
    dense = weight + scaling * (trained[1] @ trained[0] - start)
    dense = trained[2][:, None] * dense / dense.norm(dim=1, keepdim=True).detach()
    expected = torch.autograd.grad((inputs @ dense.t()).square().sum(), [*trained, inputs])
    actual = torch.autograd.grad(layer(inputs).square().sum(), [*trained, inputs])
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "theirs"), [(PISSA, "pissa"), (OLORA, "olora")])
def test_factors_are_pefts(exact_model: Path, kind: InitLoraWeights, theirs: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(exact_model)
    parameter = base.get_parameter("model.layers.0.mlp.down_proj.weight")
    left, _, right = torch.linalg.svd(parameter.detach(), full_matrices=False)
    parameter.data = left * 0.5 ** torch.arange(len(left)) @ right  # a spectrum whose largest directions stand out
    weight = parameter.detach().clone()
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=theirs, target_modules=["down_proj"])
    layer = lora_layers(get_peft_model(base, config))[0]
    lora_a, lora_b = _factors(weight, kind, 4, 2.0)
    expected = layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
    torch.testing.assert_close(lora_b @ lora_a, expected, rtol=1e-3, atol=1e-4)


def test_training_away_from_the_start_is_training_on_the_residual(exact_model: Path) -> None:
    """The same loss and gradients as PiSSA as published: factors taken out of the base weight, and trained."""
    loaded = loaded_with(exact_model, init_lora_weights=PISSA)
    residual = loaded_with(exact_model)
    train(loaded)
    with torch.no_grad():
        for ours, theirs in zip(lora_layers(loaded.model), lora_layers(residual.model), strict=True):
            taken = getattr(ours, START_B) @ getattr(ours, START_A)
            theirs.get_base_layer().weight -= ours.scaling[ADAPTER] * taken
        for (_, mine), (_, other) in zip(loaded.parameters, residual.parameters, strict=True):
            other.copy_(mine)
    losses = []
    for model in (loaded, residual):
        loss = loss_of(model.backbone, model.head)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for (name, mine), (_, other) in zip(loaded.parameters, residual.parameters, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_start_is_a_function_of_the_seed(exact_model: Path) -> None:
    setup = setup_for(Method.QLORA, init_lora_weights=PISSA)
    first, again = (load_for_training(exact_model, setup, 7, CPU).started for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": PISSA}])
def test_what_a_variant_cannot_adapt_is_refused(tmp_path: Path, exact_model: Path, changes: dict[str, Any]) -> None:
    mixture = make_tiny_model(tmp_path / "mixtral", family="mixtral")
    for model, targets in ((mixture, ("all-linear",)), (exact_model, ("q_proj", "embed_tokens"))):
        with pytest.raises(TrainingError, match="linear layers of the decoder"):
            load_for_training(model, setup_for(Method.LORA, lora_target_modules=targets, **changes), 0, CPU)
