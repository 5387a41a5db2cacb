"""Data sets of the hub: which files a reference means, refusals before a byte is fetched, one file of many shards."""

import io
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.datasets.hub import HubReference, HubSource, download, parse_reference, resolve
from core.datasets.reading import read_rows
from core.errors import InvalidRequestError, ServiceUnavailableError, TunewrightError
from core.hub_access import ANONYMOUS
from tests.hub_server import (
    COMMIT,
    CONVERTED,
    CONVERTED_COMMIT,
    NEXT_COMMIT,
    Hub,
    Repository,
    parquet,
    running_hub,
    talk_to,
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library in this process talks to."""
    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        yield hub


def found(reference: str) -> HubSource:
    return resolve(parse_reference(reference, "training_file"), ANONYMOUS, "training_file")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf://acme/math", HubReference("acme/math")),
        ("hf://squad", HubReference("squad")),
        ("hf://datasets/acme/math@v1.0", HubReference("acme/math", revision="v1.0")),
        (
            "hf://acme/math?config=main&split=test&revision=refs%2Fpr%2F1",
            HubReference("acme/math", "main", "test", "refs/pr/1"),
        ),
    ],
)
def test_references_are_read(text: str, reference: HubReference) -> None:
    assert parse_reference(text, "training_file") == reference


@pytest.mark.parametrize("text", ["hf://", "hf://a/b/c", "hf://../etc", "hf://a/b?spilt=train", "hf://a/b?split="])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_reference(text, "validation_file")
    assert (caught.value.code, caught.value.param) == ("invalid_hub_reference", "validation_file")


def test_files_are_found_by_name(hub: Hub) -> None:
    hub.repositories["acme/math"] = Repository(
        {
            "main": (
                COMMIT,
                {
                    "README.md": b"#",
                    "main/train-00001-of-00002.parquet": parquet("c"),
                    "main/train-00000-of-00002.parquet": parquet("a", "b"),
                    "main/test-00000-of-00001.parquet": parquet("d"),
                    "socratic/train-00000-of-00001.parquet": parquet("e"),
                },
            )
        }
    )
    source = found("hf://acme/math?config=main")
    assert (source.revision, source.config, source.split) == (COMMIT, "main", "train")
    assert source.paths == ("main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet")
    assert source.size_bytes == len(parquet("a", "b")) + len(parquet("c"))
    assert found("hf://acme/math?config=main&split=test").paths == ("main/test-00000-of-00001.parquet",)
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("path", "config", "split"),
    [
        ("train.parquet", "default", "train"),
        ("data/test-00000-of-00001-0123456789abcdef.parquet", "default", "test"),
        ("data/valid.parquet", "default", "validation"),
        ("plain_text/dev-00000-of-00001.parquet", "plain_text", "validation"),
        ("en/train/0000.parquet", "en", "train"),
        ("en/train/part.parquet", "en", "train"),
        ("everything.parquet", "default", "train"),
    ],
)
def test_names_say_config_and_split(hub: Hub, path: str, config: str, split: str) -> None:
    hub.repositories["acme/one"] = Repository({"main": (COMMIT, {path: parquet("a")})})
    source = found("hf://acme/one")
    assert (source.config, source.split, source.paths) == (config, split, (path,))


def test_the_card_comes_before_names(hub: Hub) -> None:
    files = {"v2/a.parquet": parquet("a"), "v2/b.parquet": parquet("b"), "old/c.parquet": parquet("c")}
    card = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "easy", "path": "v2/a*"}, {"split": "hard", "path": ["v2/b*"]}],
            },
            {"config_name": "old", "data_files": "old/*.parquet"},
        ]
    }
    hub.repositories["acme/card"] = Repository({"main": (COMMIT, files)}, card)
    assert found("hf://acme/card?split=hard").paths == ("v2/b.parquet",)
    assert found("hf://acme/card?config=old").split == "train"
    with pytest.raises(TunewrightError, match="easy, hard") as caught:
        found("hf://acme/card")
    assert caught.value.code == "unknown_split"


def test_a_set_without_parquet_is_read_as_the_hub_converted_it(hub: Hub) -> None:
    hub.repositories["acme/csv"] = Repository(
        {
            "main": (COMMIT, {"train.csv": b"question,answer"}),
            CONVERTED: (CONVERTED_COMMIT, {"default/train/0000.parquet": parquet("a")}),
        }
    )
    source = found("hf://acme/csv")
    assert (source.revision, source.paths) == (CONVERTED_COMMIT, ("default/train/0000.parquet",))
    with pytest.raises(TunewrightError, match="at 'main'") as caught:  # that revision has none
        found("hf://acme/csv@main")
    assert caught.value.code == "no_parquet"
    assert found(source.reference) == source


def test_a_reference_is_pinned_to_its_commit(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/moving"] = Repository({"main": (COMMIT, {"train.parquet": parquet("old")})})
    first = found("hf://acme/moving")
    hub.repositories["acme/moving"].revisions = {
        "before": (COMMIT, {"train.parquet": parquet("old")}),
        "main": (NEXT_COMMIT, {"train.parquet": parquet("new")}),
    }
    assert found("hf://acme/moving").revision == NEXT_COMMIT
    assert found(first.reference) == first
    path = download(first, ANONYMOUS, tmp_path)
    assert path.read_bytes() == parquet("old")


def test_shards_become_one_file_in_their_order(hub: Hub, tmp_path: Path) -> None:
    shards = {f"data/train-0000{i}-of-00003.parquet": parquet(*(f"{i}-{j}" for j in range(700))) for i in range(3)}
    hub.repositories["acme/many"] = Repository({"main": (COMMIT, shards)})
    path = download(found("hf://acme/many"), ANONYMOUS, tmp_path)
    assert [row["question"] for _, row in read_rows(path)] == [f"{i}-{j}" for i in range(3) for j in range(700)]


def test_shards_that_do_not_go_together_are_refused(hub: Hub, tmp_path: Path) -> None:
    other = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"]}), other)
    files = {"train-00000.parquet": parquet("a"), "train-00001.parquet": other.getvalue()}
    hub.repositories["acme/torn"] = Repository({"main": (COMMIT, files)})
    with pytest.raises(TunewrightError) as caught:
        download(found("hf://acme/torn"), ANONYMOUS, tmp_path)
    assert caught.value.code == "damaged_file"


@pytest.mark.parametrize(
    ("reference", "status", "code", "says"),
    [
        ("hf://acme/none", 404, "dataset_not_found", "'acme/none'"),
        ("hf://acme/math@v9", 404, "dataset_not_found", "revision"),
        ("hf://acme/gated", 400, "dataset_gated", "add your own hub token"),
        ("hf://acme/pictures", 400, "no_parquet", "upload it as JSON Lines"),
        ("hf://acme/math", 400, "unknown_config", "main, socratic"),
        ("hf://acme/math?config=main&split=dev", 400, "unknown_split", "train"),
        ("hf://acme/shy", 400, "no_parquet", "how large"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, reference: str, status: int, code: str, says: str) -> None:
    table = {"main/train.parquet": parquet("a"), "socratic/train.parquet": parquet("b")}
    hub.repositories.update(
        {
            "acme/math": Repository({"main": (COMMIT, table)}),
            "acme/gated": Repository({"main": (COMMIT, table)}, gated=True),
            "acme/pictures": Repository({"main": (COMMIT, {"a.png": b""})}),
            "acme/shy": Repository({"main": (COMMIT, {"train.parquet": parquet("a")})}, hides_sizes=True),
        }
    )
    with pytest.raises(TunewrightError) as caught:
        found(reference)
    assert (caught.value.status, caught.value.code, caught.value.param) == (status, code, "training_file")
    assert says in caught.value.message
    assert hub.fetched == []


def test_a_hub_that_is_broken_or_out_of_reach_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_broken = True
    with pytest.raises(ServiceUnavailableError) as caught:
        found("hf://acme/math")
    assert caught.value.code == "hub_unreachable"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()  # a session decides when it is made
    with pytest.raises(ServiceUnavailableError, match=r"OfflineModeIsEnabled.*upload its file"):
        found("hf://acme/math")
    huggingface_hub.close_session()
