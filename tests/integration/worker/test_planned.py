"""What was planned is what runs: the model at its revision and the data's bytes, or an error that says what changed."""

import json
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import huggingface_hub.constants
import pytest
from pydantic import SecretStr

from core.accounts import hub_tokens
from core.datasets.models import StoredFile
from core.db.leases import Holder
from core.errors import InvalidModelError, ModelNotFoundError, TrainingError
from core.hub_access import HubAccess
from core.jobs import lease as leases
from core.registry.base_models import ModelRef
from planner.options import RequestedConfig
from tests.hub_server import COMMIT, NEXT_COMMIT, Repository, running_hub, talk_to
from tests.integration.worker.installation import CPU, Installation, installation
from tests.tiny_models import make_tiny_model
from worker.fetching import Fetcher, InterruptibleFetcher
from worker.prepare import Prepared, prepare

ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(20)
]


@pytest.fixture
def here(tmp_path: Path, valkey_url: str) -> Iterator[Installation]:
    """An installation with a models folder of its own."""
    make_tiny_model(tmp_path / "models" / "tiny")
    with installation(tmp_path / "data", tmp_path / "models", valkey_url) as found:
        yield found


def prepared(here: Installation, fetcher: Fetcher | None = None) -> Prepared:
    """What a worker fetches for the job that is next."""
    settings = here.runtime.settings
    claimed = here.runtime.database.run(
        lambda session: leases.claim_next(session, settings, Holder("w", ["cpu"]), CPU.device_class)
    )
    assert claimed is not None
    lease, job = claimed
    try:
        return prepare(here.runtime, lease, job, fetcher or Fetcher(here.runtime))
    finally:
        here.runtime.database.run(lambda session: leases.release(session, lease, "The worker shuts down"))


def test_a_repository_that_is_swapped_after_planning_does_not_change_the_run(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = {path.name: path.read_bytes() for path in (tmp_path / "models" / "tiny").iterdir()}
    config = json.loads(planned["config.json"])
    swapped = planned | {"config.json": json.dumps(config | {"num_hidden_layers": 24}).encode()}
    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "planning"))
        hub.repositories["acme/moving"] = Repository({"main": (COMMIT, planned)})
        here.submit(ROWS, RequestedConfig(n_epochs=1), model="acme/moving")

        hub.repositories["acme/moving"].revisions = {"main": (NEXT_COMMIT, swapped), "old": (COMMIT, planned)}
        for machine in ("first", "second"):
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / machine))
            found = prepared(here)
            assert found.base_model.revision == COMMIT
            assert json.loads((found.weights / "config.json").read_text()) == config

        del hub.repositories["acme/moving"].revisions["old"]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "third"))
        with pytest.raises(InvalidModelError) as caught:
            prepared(here)
    assert caught.value.code == "model_changed"
    for part in (COMMIT[:12], NEXT_COMMIT[:12], "new job"):
        assert part in caught.value.message


def test_a_private_model_is_fetched_with_its_organizations_token_and_never_without(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, operators = "hf_" + "ada" * 9, "hf_" + "operator" * 4
    monkeypatch.setenv("HF_TOKEN", operators)
    model = {path.name: path.read_bytes() for path in (tmp_path / "models" / "tiny").iterdir()}
    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        hub.accounts = {token: "ada", operators: "operator"}
        readers = frozenset(hub.accounts)
        hub.repositories["acme/mine"] = Repository({"main": (COMMIT, model)}, private=True, readers=readers)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        organization_id = here.actor.organization_id
        hub_tokens.set_token(here.runtime, organization_id, SecretStr(token))
        here.submit(ROWS, RequestedConfig(n_epochs=1), model="acme/mine")
        assert prepared(here).weights.joinpath("model.safetensors").is_file()

        here.runtime.database.run(lambda session: hub_tokens.remove_token(session, organization_id))
        with pytest.raises(ModelNotFoundError) as caught:  # though all of it is in this machine's cache
            prepared(here)
        assert "add your own hub token" in caught.value.message
        assert hub.tokens == {token, None}
        hub.is_broken = True
        assert prepared(here), "a hub that is away stops no job whose model is here"


@pytest.fixture
def fresh_fork_server() -> Iterator[None]:
    """Its libraries read the hub's address once, at its start: one that runs already has read another."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


@pytest.mark.usefixtures("fresh_fork_server")
def test_a_fetching_child_is_handed_the_token_and_asks_with_no_other(
    here: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_" + "ada" * 9
    monkeypatch.setenv("HF_TOKEN", "hf_" + "operator" * 4)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    model = {path.name: path.read_bytes() for path in (tmp_path / "models" / "tiny").iterdir()}
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        hub.accounts = {token: "ada"}
        hub.repositories["acme/mine"] = Repository({"main": (COMMIT, model)}, private=True, readers=frozenset({token}))
        wanted = ModelRef("acme/mine", COMMIT)
        fetcher = InterruptibleFetcher(here.runtime, lambda: False)
        with pytest.raises(ModelNotFoundError):
            fetcher.weights(wanted, HubAccess())
        found, weights = fetcher.weights(wanted, HubAccess(SecretStr(token)))
        assert (found.revision, weights.is_relative_to(tmp_path / "home")) == (COMMIT, True)
        assert hub.tokens == {token, None}


def test_weights_of_the_same_shape_that_were_put_in_place_of_the_planned_ones_are_refused(
    here: Installation, tmp_path: Path
) -> None:
    here.submit(ROWS, RequestedConfig(n_epochs=1))
    planned = prepared(here).base_model.revision
    weights = tmp_path / "models" / "tiny" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    half = len(content) // 2
    content[half:] = bytes(byte ^ 1 for byte in content[half:])
    weights.write_bytes(content)
    with pytest.raises(InvalidModelError) as caught:
        prepared(here)
    assert caught.value.code == "model_changed"
    assert planned[:12] in caught.value.message


@pytest.mark.parametrize("is_there", [True, False])
def test_data_that_is_not_the_planned_bytes_is_refused(here: Installation, is_there: bool) -> None:
    job = here.job(here.submit(ROWS, RequestedConfig(n_epochs=1)))
    with here.runtime.database.read() as session:
        file = session.get_one(StoredFile, job.training_file_id)
    assert job.plan.training_sha256 == file.sha256
    here.runtime.store.delete(file.storage_key)
    if is_there:
        here.runtime.store.put(file.storage_key, [b"{}\n"])
    with pytest.raises(TrainingError) as caught:
        prepared(here)
    assert caught.value.code == ("data_changed" if is_there else "data_lost")
    assert file.id in caught.value.message
