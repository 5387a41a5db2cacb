"""Embedding and output projection trained whole beside adapters: in float32, tied where the model ties them."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from core.errors import TrainingError
from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import request_for, setup_for
from tests.unit.training.test_initialization import CPU, IDS, logits_of, train
from worker.training.export.portable import save_adapter
from worker.training.export.verification import VerificationTask, _load
from worker.training.model.loading import load_base, load_for_training

BOTH = ("lm_head", "embed_tokens")
NAMES = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma3_text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama and gemma3 with tied embeddings, gemma3's scaled; mistral without."""
    return make_tiny_model(tmp_path_factory.mktemp("whole") / request.param, family=request.param)


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
@pytest.mark.parametrize("modules", [("embed_tokens",), ("lm_head",), BOTH])
def test_whole_modules_learn_and_reload_in_plain_peft(
    model: Path, tmp_path: Path, method: Method, modules: tuple[str, ...]
) -> None:
    setup = setup_for(method, modules_to_save=modules)
    loaded = load_for_training(model, setup, 0, CPU)
    loaded.causal_model.set_attn_implementation("sdpa")
    base = load_base(model, setup, CPU, "sdpa")
    is_tied = base.config.tie_word_embeddings
    whole = {name: parameter for name, parameter in loaded.parameters if "modules_to_save" in name}
    assert len(whole) == (1 if is_tied else len(modules))
    assert {parameter.dtype for parameter in whole.values()} == {torch.float32}
    before = {name: parameter.detach().clone() for name, parameter in whole.items()}
    losses = train(loaded)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in whole.items())
    trained = logits_of(loaded.causal_model)

    save_adapter(loaded, request_for(model, model, tmp_path, setup), tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    expected = set(NAMES.values()) if is_tied else {NAMES[name] for name in modules}
    assert {name for name in saved if "lora" not in name} == {f"base_model.model.{path}.weight" for path in expected}
    assert {tensor.dtype for name, tensor in saved.items() if "lora" not in name} == {torch.bfloat16}
    adapted = PeftModel.from_pretrained(base, tmp_path)
    reloaded = logits_of(adapted)
    assert (reloaded - trained).norm() < 0.01 * trained.norm()  # PEFT multiplies adapters in float32
    if is_tied:
        head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
        assert head.modules_to_save["default"].weight is embedding.modules_to_save["default"].weight


def test_without_rounding_the_reload_is_the_same_to_the_bit(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "llama", dtype="float32")
    setup = setup_for(Method.LORA, dtype="float32", modules_to_save=("embed_tokens",))
    loaded = load_for_training(model, setup, 0, CPU)
    loaded.causal_model.set_attn_implementation("sdpa")
    train(loaded)
    save_adapter(loaded, request_for(model, model, tmp_path, setup), tmp_path)
    adapted = PeftModel.from_pretrained(load_base(model, setup, CPU, "sdpa"), tmp_path)
    assert torch.equal(logits_of(adapted), logits_of(loaded.causal_model))


def test_gradients_are_those_of_whole_weights(tmp_path: Path) -> None:
    """Next to a full fine-tuning of the same model, whose own gradients they must be."""
    model = make_tiny_model(tmp_path / "mistral", family="mistral", dtype="float32")
    gradients = []
    for setup in (
        setup_for(Method.LORA, dtype="float32", modules_to_save=BOTH),
        setup_for(Method.FULL, dtype="float32"),
    ):
        loaded = load_for_training(model, setup, 0, CPU)
        loaded.causal_model.set_attn_implementation("sdpa")
        loss = loaded.causal_model(IDS, labels=IDS).loss
        loss.backward()
        found = {name: parameter.grad for name, parameter in loaded.parameters}
        gradients.append(
            [next(gradient for name, gradient in found.items() if key in name) for key in ("embed_tokens", "lm_head")]
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:The PEFT config")  # the export names the base by its id, not by its folder
def test_a_4_bit_mixture_with_a_whole_module_is_proven(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "mixtral", family="mixtral")
    setup = setup_for(Method.QLORA, modules_to_save=BOTH)
    loaded = load_for_training(model, setup, 0, CPU)
    loaded.causal_model.set_attn_implementation("sdpa")
    train(loaded)
    trained = logits_of(loaded.causal_model)
    save_adapter(loaded, request_for(model, model, tmp_path, setup), tmp_path)
    task = VerificationTask(str(model), str(tmp_path), setup, "cpu", 1, ())
    reloaded = logits_of(_load(task, CPU))
    assert (reloaded - trained).norm() < 0.02 * trained.norm()


def test_other_modules_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "llama")
    with pytest.raises(TrainingError, match="q_proj; embed_tokens and lm_head can be trained whole"):
        load_for_training(model, setup_for(Method.LORA, modules_to_save=("q_proj",)), 0, CPU)
