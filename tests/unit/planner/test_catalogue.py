"""The catalogue's own consistency, and that every entry can be planned."""

import pytest

from planner import catalogue
from planner.devices import parse_gpu
from planner.errors import InvalidSetupError
from planner.model.spec import ModelSpec

PUBLISHED_PARAMETERS = {
    "smollm2-135m-instruct": 134_515_008,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b-instruct": 70_553_706_496,
    "mixtral-8x7b-instruct-v0.1": 46_702_792_704,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "gemma-2-9b-it": 9_241_705_984,
    "phi-3-mini-4k-instruct": 3_821_079_552,
}


def test_there_are_enough_models_and_gpus_and_no_id_twice():
    models, gpus = catalogue.models(), catalogue.gpus()
    assert len(models) >= 25
    assert len(gpus) >= 25
    assert len({model.id for model in models}) == len(models)
    assert len({gpu.id for gpu in gpus}) == len(gpus)


@pytest.mark.parametrize("model", catalogue.models(), ids=lambda model: model.id)
def test_every_model_has_a_spec(model):
    spec = ModelSpec.from_config(model.config)
    assert spec.parameters == PUBLISHED_PARAMETERS.get(model.id, spec.parameters)
    assert catalogue.find_model(model.id) is model
    assert catalogue.find_model(model.hub_id.upper()) is model


def test_the_demo_model_is_there_under_its_hub_name():
    model = catalogue.find_model("smollm2-135m-instruct")
    assert model is not None
    assert model.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert catalogue.find_model("no-such-model") is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("A100-80GB", "nvidia-a100-80gb"),
        ("nvidia a100 40gb", "nvidia-a100-40gb"),
        ("RTX 4090", "nvidia-rtx-4090-24gb"),
        ("h200", "nvidia-h200-141gb"),
        ("L4", "nvidia-l4-24gb"),
    ],
)
def test_gpus_are_found_however_they_are_written(written, expected):
    assert parse_gpu(written).device_class == expected


@pytest.mark.parametrize(("written", "size"), [("24GiB", 24 << 30), ("80GB", 80 * 10**9), ("1.5 g", 3 << 29)])
def test_a_size_is_a_gpu_too(written, size):
    device = parse_gpu(written)
    assert device.total_bytes == device.free_bytes == size
    assert device.device_class == "default"


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSetupError, match="a100-80gb"):
        parse_gpu("Voodoo 2")
