"""An organization's hub token from the command line."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from cli.hub_token import hub_token
from core.db.migrate import upgrade
from core.settings import Settings
from tests.hub_server import running_hub, talk_to

TOKEN = "hf_" + "ada" * 8 + "x7Qk"


def test_a_token_is_set_shown_sealed_anew_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    upgrade(Settings(data_dir=tmp_path).resolved_database_url)
    said = []

    def run(*arguments: str, **options: str) -> str:
        done = CliRunner().invoke(hub_token, [*arguments, "--data", str(tmp_path)], **options)
        assert done.exception is None, done.exception
        said.append(done.output)
        return done.output

    with running_hub() as hub:
        talk_to(hub, monkeypatch)
        hub.accounts[TOKEN] = "ada"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert "…x7Qk of ada" in run("set")
    assert "…x7Qk of ada" in run("show")
    monkeypatch.setenv("TUNEWRIGHT_SECRET_KEY", "another-secret-of-32-characters-or-more")
    monkeypatch.setenv("TUNEWRIGHT_FORMER_SECRET_KEY", (tmp_path / "secret.key").read_text())
    assert "1 sealed" in run("seal")
    assert "forgotten" in run("remove")
    assert TOKEN not in "".join(said)
