"""What the catalogue says of a base model before it is chosen: its download, whether it can be had, what fits."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from core.hub_access import ANONYMOUS
from core.registry import hub
from core.registry.base_models import find_base_model
from core.registry.choices import Availability, ModelChoice, find_choice, model_choices
from core.registry.hub_state import HubState, HubStates
from planner.catalogue import find_model
from tests.hub_server import COMMIT, Hub, Repository, running_hub, talk_to
from tests.waiting import wait_for

LLAMA, QWEN = "llama-3.1-8b-instruct", "qwen3-0.6b"
REACHED = HubState(None, frozenset({"meta-llama/Llama-3.1-8B-Instruct"}))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's library."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process talks to."""
    with running_hub() as found:
        talk_to(found, monkeypatch)
        yield found


def keep(cache: Path, hub_id: str, *weights: str, index: tuple[str, ...] = ()) -> Path:
    """Put a hub model into the cache, as the hub's library does."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    directory = repository / "snapshots" / COMMIT
    directory.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    entry = find_model(hub_id)
    assert entry is not None
    (directory / "config.json").write_text(json.dumps(entry.config))
    (directory / "tokenizer.json").write_text("{}")
    if index:
        weight_map = {str(place): name for place, name in enumerate(index)}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in weights:
        (directory / name).touch()
    return directory


def choice(models_dir: Path, model_id: str, state: HubState = REACHED) -> ModelChoice:
    found = find_choice(models_dir, [], state, model_id)
    assert found is not None
    assert found in model_choices(models_dir, [], state), "the list and the page of one say the same"
    return found


def test_a_gated_model_says_so_with_its_download(tmp_path: Path) -> None:
    found = choice(tmp_path, LLAMA)
    assert found.availability is Availability.GATED
    assert found.problem is not None
    assert "accept its licence" in found.problem
    assert found.download_bytes == 2 * 8_030_261_248
    assert choice(tmp_path, QWEN).availability is Availability.DOWNLOADABLE


def test_out_of_reach_is_said_of_what_is_not_here(tmp_path: Path, cache: Path) -> None:
    keep(cache, "Qwen/Qwen3-0.6B", "model.safetensors")
    state = HubState("the model hub does not answer", frozenset())
    here, there = choice(tmp_path, QWEN, state), choice(tmp_path, LLAMA, state)
    assert (here.availability, here.problem, here.download_bytes) == (Availability.LOCAL, None, None)
    assert (there.availability, there.problem) == (
        Availability.UNREACHABLE, "Not reachable: the model hub does not answer",
    )  # fmt: skip


def test_a_download_that_broke_off_is_not_here(tmp_path: Path, cache: Path) -> None:
    keep(cache, "Qwen/Qwen3-0.6B", "a.safetensors", index=("a.safetensors", "b.safetensors"))
    assert choice(tmp_path, QWEN).availability is Availability.DOWNLOADABLE
    assert hub.downloaded("Qwen/Qwen3-0.6B") is None


def test_what_was_downloaded_is_planned_without_the_hub(tmp_path: Path, cache: Path) -> None:
    directory = keep(cache, "Qwen/Qwen3-0.6B", "model.safetensors")
    found = find_base_model(tmp_path, QWEN, ANONYMOUS)
    assert (found.directory, found.revision, found.has_weights) == (directory, COMMIT, True)


def test_names_that_are_no_model_are_none(tmp_path: Path) -> None:
    for name in ("acme/unknown", "..", "../..", "a\0b", "x" * 500):
        assert find_choice(tmp_path, [], REACHED, name) is None


def test_an_installation_that_is_offline_says_so_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(HubStates().state(ANONYMOUS).problem)


def test_a_hub_that_does_not_answer_is_noticed(answering: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        answering.url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        talk_to(answering, monkeypatch)
        states = HubStates()
        wait_for(lambda: states.state(ANONYMOUS).problem, what="the hub's silence")
    assert states.state(ANONYMOUS).problem == "the model hub does not answer"


def test_the_hub_says_which_models_it_refuses(answering: Hub) -> None:
    answering.repositories["google/gemma-2b-it"] = Repository({})
    states = HubStates()
    wait_for(lambda: "google/gemma-2b-it" not in states.state(ANONYMOUS).refused, what="the hub's answers")
    state = states.state(ANONYMOUS)
    assert state.problem is None
    assert "meta-llama/Llama-3.1-8B-Instruct" in state.refused
