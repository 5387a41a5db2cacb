"""What is kept encrypted opens with the key it was sealed with, for its purpose, and with nothing else."""

from pathlib import Path

import pytest

from core.accounts.sealing import KEY_FILE, seal, unseal
from core.errors import ConflictError, ServiceUnavailableError
from core.settings import Settings

FIRST, SECOND = "first-" * 6, "second-" * 6


def test_a_sealed_text_opens_for_its_purpose_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    sealed = seal(settings, "one", "hf_secret")
    assert "hf_secret" not in sealed
    assert unseal(Settings(data_dir=tmp_path / "data"), "one", sealed) == "hf_secret"
    with pytest.raises(ServiceUnavailableError):
        unseal(settings, "another", sealed)
    key = tmp_path / "data" / KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in key.parent.iterdir()] == [KEY_FILE]


def test_a_key_is_changed_without_losing_what_was_sealed(tmp_path: Path) -> None:
    sealed = seal(Settings(data_dir=tmp_path, secret_key=FIRST), "one", "text")
    with pytest.raises(ServiceUnavailableError) as refused:
        unseal(Settings(data_dir=tmp_path, secret_key=SECOND), "one", sealed)
    assert refused.value.code == "secret_key_changed"
    both = Settings(data_dir=tmp_path, secret_key=SECOND, former_secret_key=FIRST)
    anew = seal(both, "one", unseal(both, "one", sealed))
    assert unseal(Settings(data_dir=tmp_path, secret_key=SECOND), "one", anew) == "text"


def test_a_service_of_several_machines_is_given_its_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url="postgresql+psycopg://host/database")
    with pytest.raises(ConflictError) as refused:
        seal(settings, "one", "text")
    assert (refused.value.code, "TUNEWRIGHT_SECRET_KEY" in refused.value.message) == ("secret_key_missing", True)
    assert list(tmp_path.iterdir()) == []
