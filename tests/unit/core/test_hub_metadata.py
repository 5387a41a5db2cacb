"""What planning fetches of a hub model is measured before it is fetched."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.hf_api import ModelInfo

from core.errors import InvalidModelError, ModelNotFoundError, PermissionDeniedError, ServiceUnavailableError
from core.hub_access import ANONYMOUS
from core.registry import hub
from core.registry.base_models import find_base_model
from tests.hub_server import COMMIT, Hub, Repository, running_hub, talk_to

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
    hub._check_sizes("acme/x", listing(onnx__big_json=400 * MIB))  # of another format, and not fetched
    hub._check_sizes("acme/x", ModelInfo(id="a/b", siblings=[{"rfilename": "a.safetensors", "size": 10**12}]))


@pytest.fixture
def hub_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model in several formats, whose library keeps what it fetches in `tmp_path`."""
    with running_hub() as served:
        talk_to(served, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        content = {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors": b"weights",
            "onnx/config.json": b"{}",
            "original/params.json": b"{}",
            "onnx/model.safetensors": b"other weights",
            "additional_chat_templates/tools.jinja": b"{{ messages }}",
        }
        served.repositories["acme/x"] = Repository({"main": (COMMIT, content)})
        yield served


def test_who_may_only_read_fetches_nothing(hub_here: Hub, tmp_path: Path) -> None:
    with pytest.raises(PermissionDeniedError) as refused:
        find_base_model(tmp_path, "acme/x", ANONYMOUS, may_fetch=False)
    assert refused.value.code == "insufficient_scope"
    assert hub_here.fetched == []
    for name in ("acme/none", "acme/x.git"):
        with pytest.raises(ModelNotFoundError):
            find_base_model(tmp_path, name, ANONYMOUS, may_fetch=False)
    fetched, commit = hub.fetch_metadata("acme/x", ANONYMOUS)
    assert hub.known_metadata("acme/x", ANONYMOUS) == (fetched, commit)


def test_other_formats_of_a_model_are_left_where_they_are(hub_here: Hub) -> None:
    metadata, commit = hub.fetch_metadata("acme/x", ANONYMOUS)
    assert _paths(metadata) == {"config.json", "tokenizer.json", "additional_chat_templates/tools.jinja"}
    weights = hub.fetch_weights("acme/x", commit, ANONYMOUS)
    assert _paths(weights) == {
        "config.json",
        "tokenizer.json",
        "additional_chat_templates/tools.jinja",
        "model.safetensors",
    }
    hub_here.is_broken = True
    assert hub.fetch_weights("acme/x", commit, ANONYMOUS) == weights, "a hub that is away stops no job"


def test_a_model_that_is_only_half_here_needs_the_hub(hub_here: Hub) -> None:
    _, commit = hub.fetch_metadata("acme/x", ANONYMOUS)
    hub_here.is_broken = True
    assert hub.fetch_planned_metadata("acme/x", commit, ANONYMOUS)
    with pytest.raises(ServiceUnavailableError):
        hub.fetch_weights("acme/x", commit, ANONYMOUS)


def _paths(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
