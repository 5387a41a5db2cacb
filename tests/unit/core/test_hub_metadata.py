"""What planning fetches of a hub model is measured before it is fetched."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.hf_api import ModelInfo

from core.errors import InvalidModelError, PermissionDeniedError
from core.registry import hub
from core.registry.base_models import find_base_model

MIB = 1024**2


def listing(**sizes: int | None) -> ModelInfo:
    return ModelInfo(
        id="acme/x",
        siblings=[
            {"rfilename": name.replace("__", "/").replace("_json", ".json"), "size": n} for name, n in sizes.items()
        ],
    )


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"vocab_json": 400 * MIB}, r"vocab\.json has 419,430,400 bytes"),
        ({"onnx__big_json": 400 * MIB}, r"onnx/big\.json has 419,430,400 bytes"),
        ({f"part{n}_json": 30 * MIB for n in range(9)}, "283,115,520 bytes together"),
        ({f"part{n}_json": 1 for n in range(600)}, "there are 600 of them"),
        ({"config_json": None}, "does not say how large"),
    ],
)
def test_too_much_is_refused_before_it_is_fetched(sizes: dict[str, int | None], says: str) -> None:
    with pytest.raises(InvalidModelError, match=says) as refused:
        hub._check_sizes("acme/x", listing(**sizes))
    assert refused.value.code == "metadata_too_large"


def test_what_models_have_is_taken_whatever_their_weights_weigh() -> None:
    hub._check_sizes("acme/x", listing(config_json=2000, tokenizer_json=35 * MIB))
    hub._check_sizes("acme/x", ModelInfo(id="a/b", siblings=[{"rfilename": "a.safetensors", "size": 10**12}]))


def test_who_may_only_read_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("acme/never-used-here", "acme/x.git"):
        with pytest.raises(PermissionDeniedError) as refused:
            find_base_model(tmp_path, name, may_fetch=False)
        assert refused.value.code == "insufficient_scope"
