"""Weights are judged by their headers: what cannot be trained as planned is refused before it is priced."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidModelError
from core.hub_access import ANONYMOUS
from core.registry.base_models import BaseModel, find_base_model
from core.registry.weights import check_weights, stored_tensors
from planner.model.families import FAMILIES
from planner.model.spec import ModelSpec
from tests.tiny_models import make_tiny_model


def base_model(tmp_path: Path, family: str = "llama", **overrides: Any) -> BaseModel:
    make_tiny_model(tmp_path / "tiny", family=family, **overrides)
    return find_base_model(tmp_path, "tiny", ANONYMOUS)


def rewrite(directory: Path, change: Any) -> BaseModel:
    """Pass the header of the weights through `change`, without their data."""
    file = directory / "model.safetensors"
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    encoded = json.dumps(change(header)).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    return find_base_model(directory.parent, directory.name, ANONYMOUS)


def check(model: BaseModel) -> None:
    check_weights(model, ModelSpec.from_config(model.config))


def with_tensor(name: str, shape: list[int], dtype: str = "BF16") -> Any:
    return lambda header: header | {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_what_the_planner_counts(tmp_path: Path, family: str) -> None:
    check(base_model(tmp_path, family))


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = base_model(tmp_path)
    AutoModelForCausalLM.from_pretrained(whole.directory).save_pretrained(whole.directory, max_shard_size="50KB")
    (whole.directory / "model.safetensors").unlink()
    assert len(list(whole.directory.glob("*.safetensors"))) > 1
    check(find_base_model(tmp_path, "tiny", ANONYMOUS))


def test_a_tied_head_and_computed_buffers_may_be_written_out(tmp_path: Path) -> None:
    model = base_model(tmp_path)
    vocabulary, hidden = model.config["vocab_size"], model.config["hidden_size"]
    rewrite(model.directory, with_tensor("lm_head.weight", [vocabulary, hidden]))
    check(rewrite(model.directory, with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", [8], "F32")))


def test_a_head_that_is_not_there_is_missed(tmp_path: Path) -> None:
    model = base_model(tmp_path)
    config = dict(model.config) | {"tie_word_embeddings": False}
    (model.directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModelError, match="would start at random") as refused:
        check(find_base_model(tmp_path, "tiny", ANONYMOUS))
    assert refused.value.code == "weights_mismatch"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_tensor("model.layers.9.mlp.up_proj.weight", [10, 10]), r"100 more than the [0-9,]+ that config\.json"),
        (lambda header: {k: v for k, v in header.items() if "layers.1.mlp" not in k}, r"24,576 fewer than the"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, change: Any, says: str) -> None:
    model = rewrite(base_model(tmp_path).directory, change)
    with pytest.raises(InvalidModelError, match=says) as refused:
        check(model)
    assert refused.value.code == "weights_mismatch"
    check_weights(model, None)  # of an architecture without a formula nothing is known to compare with


@pytest.mark.parametrize("dtype", ["U8", "I8", "I32", "F8_E4M3", "F8_E5M2"])
def test_quantized_weights_are_refused(tmp_path: Path, dtype: str) -> None:
    def pack(header: dict[str, Any]) -> dict[str, Any]:
        return {name: value | {"dtype": dtype} if "mlp" in name else value for name, value in header.items()}

    model = rewrite(base_model(tmp_path).directory, pack)
    for spec in (ModelSpec.from_config(model.config), None):
        with pytest.raises(InvalidModelError, match=f"already quantized.* {dtype}") as refused:
            check_weights(model, spec)
        assert refused.value.code == "quantized_weights"


def test_a_quantization_that_only_the_configuration_names_is_refused(tmp_path: Path) -> None:
    model = base_model(tmp_path)
    quantized = dict(model.config) | {"quantization_config": {"quant_method": "awq"}}
    (model.directory / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(InvalidModelError, match="the method 'awq'"):
        check_weights(find_base_model(tmp_path, "tiny", ANONYMOUS), None)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_torn_files_are_named(tmp_path: Path, content: bytes) -> None:
    model = base_model(tmp_path)
    (model.directory / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidModelError, match="headers of 'tiny' cannot be read") as refused:
        check(find_base_model(tmp_path, "tiny", ANONYMOUS))
    assert refused.value.code == "unreadable_weights"


def test_no_data_is_read(tmp_path: Path) -> None:
    model = base_model(tmp_path)
    whole = dict(stored_tensors(model))
    assert dict(stored_tensors(rewrite(model.directory, lambda header: header))) == whole
