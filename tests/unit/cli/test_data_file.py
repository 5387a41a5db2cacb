"""A command's training data: a file of this machine, or a data set of the hub, fetched for the while."""

from pathlib import Path

import pytest
import typer

from cli.data_file import data_file
from core.datasets.reading import read_rows
from core.errors import FileTooLargeError
from core.settings import Settings
from tests.hub_server import COMMIT, Repository, parquet, running_hub, talk_to


def test_a_data_set_of_the_hub_is_there_until_it_was_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        hub.repositories["acme/lamps"] = Repository({"main": (COMMIT, {"train.parquet": parquet("a", "b")})})
        with data_file("hf://acme/lamps", Settings()) as path:
            assert path is not None
            assert [row["question"] for _, row in read_rows(path)] == ["a", "b"]
        assert not path.exists()
        assert COMMIT in capsys.readouterr().err.replace("\n", "")
        hub.fetched.clear()
        with pytest.raises(FileTooLargeError, match="TUNEWRIGHT_MAX_UPLOAD_BYTES"):
            data_file("hf://acme/lamps", Settings(max_upload_bytes=10)).__enter__()
        assert hub.fetched == []


def test_a_file_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with data_file(str(tmp_path / "rows.jsonl"), Settings()) as path:
        assert path == tmp_path / "rows.jsonl"
    with data_file(None, Settings()) as path:
        assert path is None
    with pytest.raises(typer.BadParameter, match="does not exist"):
        data_file(str(tmp_path / "missing"), Settings()).__enter__()
