"""Text that was damaged before it came, and marks of pictures that do not come with it, are told and never trained in
silence.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from core.datasets.damaged_text import text_notices
from core.datasets.detection import detect_format
from core.datasets.inspection import inspect_file
from core.datasets.notices import NoticeCollector
from core.datasets.reading import read_examples

WORDS = ["Grüße", "don’t", "“quoted”", "25 °C", "à la carte", "zażółć", "på Åke", "😀", "Привет", "Ελλάδα"]
WORDS += ["你好，世界", "日本語です", "한국어", "नमस्ते", "สวัสดี", "שלום", "سلام عليكم", "Việt Nam đẹp", "CORAÇÃO"]


def codes(text: str) -> list[str]:
    return [code for code, _ in text_notices([text])]


def misread(text: str, encoding: str) -> str:
    """UTF-8 as a program shows it that takes it for something else; the few bytes without a letter stay bytes."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("word", WORDS)
def test_text_that_was_decoded_wrongly_is_told_and_right_text_is_not(word: str) -> None:
    assert codes(word) == []
    assert codes(f"So {word} it is.") == []
    for encoding in ("cp1252", "latin-1"):
        assert codes(misread(word, encoding)) == ["wrongly_decoded"], encoding


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Grüße", "mac_roman"), ("don’t", "mac_roman"), ("Приветствую", "cp1251"), ("don’t", "cp1251")],
)
def test_other_wrong_encodings_are_told(text: str, encoding: str) -> None:
    assert codes(misread(text, encoding)) == ["wrongly_decoded"]


def test_letters_that_were_lost_are_told() -> None:
    [(code, message)] = text_notices(["Gr\ufffd\ufffde"])
    assert (code, "letters were lost" in message) == ("wrongly_decoded", True)


@pytest.mark.parametrize(
    "text",
    [
        "„Spaß“ und „Maß“ — “AMANHÔ, CAFÉ”, IRMÃ…",
        "« été », à\u00a0« bientôt\u00a0»",
        "моё, её… «Ещё» № 5, СССР",
        "2√±3 √π",
        "SÃO PAULO, MANHÃ — Â, Ã, Ñandú",
        "Ångström, Île, ÆØÅ, 3×4×5, ÎÏ",
    ],
)
def test_rare_letters_beside_punctuation_are_no_damage(text: str) -> None:
    assert codes(text) == []


@pytest.mark.parametrize(
    "mark",
    [
        *("<image>", "<image_1>", "<image 1>", "<|image_1|>", "<|image_pad|>", "[IMG]", "<img>a.png</img>", "<video>"),
        *("<audio>", "<ImageHere>", "<IMG_CONTEXT>", "<start_of_image>", "(<image>./</image>)"),
    ],
)
def test_marks_of_pictures_are_told(mark: str) -> None:
    assert codes(f"{mark}\nWho is this?") == ["media_placeholder"]


@pytest.mark.parametrize(
    "text",
    ["Use the `<video>` element.", '<img src="a.png" alt="a">', "<audio controls>", "List<Image>", "a[IMG]", "<b>"],
)
def test_markup_and_code_are_no_marks(text: str) -> None:
    assert codes(text) == []


BAD = "Grüße <image>".encode().decode("cp1252")
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "messages": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"role": "user", "content": BAD}, {"role": "assistant", "content": "a"}]},
    ),
    "pairs": ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": BAD}),
    "preferences": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": BAD, "chosen": "a", "rejected": "b"},
    ),
    "text": ({"text": "a"}, {"text": BAD}),
    "system": ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "system": BAD}),
    "typed parts": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": BAD}]},
                {"role": "assistant", "content": "a"},
            ]
        },
    ),
    "arguments": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": BAD}}]},
            ]
        },
    ),
}


@pytest.mark.parametrize(("good", "bad"), SHAPES.values(), ids=SHAPES)
def test_each_is_counted_with_its_first_row_in_every_shape(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    path = tmp_path / "rows"
    rows = [good] * 7 + [bad] * 3 + [good]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(notice.code, notice.rows, notice.first_row) for notice in inspect_file(path).notices]
    assert found == [("wrongly_decoded", 3, 8), ("media_placeholder", 3, 8)]
    seen = NoticeCollector()
    assert len(list(read_examples(path, detect_format(rows), seen))) == len(rows)
    assert [(notice.code, notice.rows, notice.first_row) for notice in seen.notices()] == found
