"""What a log line holds: no secret, and never more than fits one."""

import logging
from typing import Any

import pytest

from core.logging import LONGEST_VALUE, configure_logging, redact

KEY = "tw-" + "a1_-" * 8
HUB_TOKEN = "hf_" + "Ab3" * 12


def logged(**event: Any) -> dict[str, Any]:
    return dict(redact(None, "info", event))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"key {KEY} was refused", KEY),
        (f"GET https://hub.example/api?token={HUB_TOKEN}", HUB_TOKEN),
        (f"Bearer {HUB_TOKEN}", HUB_TOKEN),
        ("postgresql+psycopg://user:s3cret@host/db", "s3cret"),
        ("redis://:s3cret@host:6379/0", "s3cret"),
        ("https://store.example/a?X-Amz-Signature=abcdef0123&x=1", "abcdef0123"),
    ],
)
def test_no_secret_is_logged_wherever_it_stands(text: str, secret: str) -> None:
    for value in (text, [text], {"headers": {"x": text}}, ValueError(text), text * 1000):
        assert secret not in str(logged(error=value))


def test_what_is_named_like_a_secret_is_not_logged() -> None:
    event = logged(password="a", headers={"Authorization": "b", "accept": "c"}, hub_token="d")
    assert event == {
        "password": "[redacted]",
        "headers": {"Authorization": "[redacted]", "accept": "c"},
        "hub_token": "[redacted]",
    }


def test_a_long_value_is_cut_in_its_middle() -> None:
    cut = logged(path="a" + "x" * 60_000 + "z")["path"]
    assert len(cut) < LONGEST_VALUE + 100
    assert (cut[0], cut[-1]) == ("a", "z")
    assert "56,002 characters are left out" in cut
    assert logged(steps=5, ratio=0.5, nothing=None, is_on=True) == {
        "steps": 5,
        "ratio": 0.5,
        "nothing": None,
        "is_on": True,
    }


def test_libraries_that_log_whole_urls_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    try:
        configure_logging("INFO", as_json=True)
        for name in ("httpx", "httpx2", "urllib3.connectionpool", "huggingface_hub.file_download"):
            logging.getLogger(name).info("HTTP Request: GET https://hub.example/?token=%s", HUB_TOKEN)
        logging.getLogger("other").info("said with %s", KEY)
    finally:
        root.handlers = before
        root.setLevel(level)
    said = capsys.readouterr().err
    assert "HTTP Request" not in said
    assert "said with [redacted]" in said
    assert "said with [redacted]" in said.splitlines()[-1]
