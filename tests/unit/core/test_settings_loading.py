"""What is wrong with the environment is said at once, by variable, and without what may be a secret."""

from pathlib import Path

import pytest

from core.errors import InvalidSettingsError
from core.settings_loading import load_settings, variables


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in variables().values():
        monkeypatch.delenv(variable, raising=False)


def test_the_defaults_are_right(tmp_path: Path) -> None:
    assert load_settings(tmp_path).data_dir == tmp_path


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TUNEWRIGHT_DATABSE_URL", "postgresql+psycopg://a/b", "no setting. Did you mean TUNEWRIGHT_DATABASE_URL?"),
        ("tunewright_wurst", "1", "tunewright_wurst is no setting."),
        ("TUNEWRIGHT_DATABASE_URL", "", "is empty"),
        ("TUNEWRIGHT_DATABASE_URL", "mysql://u:p@host/db", "mysql is not spoken here"),
        ("TUNEWRIGHT_DATABASE_URL", "host:5432", "no SQLAlchemy URL"),
        ("TUNEWRIGHT_REDIS_URL", "amqp://u:p@host", "no redis:// or rediss:// URL"),
        ("TUNEWRIGHT_STORE_URL", "/srv/artifacts", "Example: TUNEWRIGHT_STORE_URL=s3://bucket/prefix"),
        ("TUNEWRIGHT_PUBLIC_URL", "example.com", "https://host"),
        ("TUNEWRIGHT_LOG_LEVEL", "loud", "'DEBUG'"),
        ("TUNEWRIGHT_SWEEP_SECONDS", "0", "greater than 0. Example: TUNEWRIGHT_SWEEP_SECONDS=10.0"),
        ("TUNEWRIGHT_SWEEP_SECONDS", "often", "valid number"),
        ("TUNEWRIGHT_MAX_ATTEMPTS", "-1", "greater than 0"),
        ("TUNEWRIGHT_PRICES", "cheap", "is no JSON"),
        ("TUNEWRIGHT_PRICES", '{"cpu": 1}', "needs a 'default'"),
        ("TUNEWRIGHT_PRICES__cpu", "-1", "TUNEWRIGHT_PRICES[cpu]"),
        ("TUNEWRIGHT_LEASE_SECONDS", "6", "at least twice heartbeat_seconds"),
    ],
)
def test_each_mistake_names_its_variable_and_what_is_right(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert said in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_all_mistakes_are_said_at_once_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_DATABASE_URL", "mysql://u:hunter2@host/db")
    monkeypatch.setenv("TUNEWRIGHT_MAX_ATTEMPTS", "0")
    monkeypatch.setenv("TUNEWRIGHT_SIGNUP_OPEN", "true")
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert len(caught.value.message.splitlines()) == 3
    assert "hunter2" not in caught.value.message


def test_a_variable_left_empty_keeps_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_SWEEP_SECONDS", "")
    assert load_settings().sweep_seconds == 10.0
