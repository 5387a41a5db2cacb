"""Two answers are the same where their final answers are, however those are written."""

import pytest

from core.datasets.final_answers import Extract, final_answer, is_match

HASHES, NUMBER, TEXT = Extract.AFTER_HASHES, Extract.LAST_NUMBER, Extract.TEXT


@pytest.mark.parametrize(
    ("text", "extract", "expected"),
    [
        ("5 + 7 = <<5+7=12>>12 lamps.\n#### 12", HASHES, "12"),
        ("#### 1\nno:\n#### $1,200.00\nThat is all.", HASHES, "1200"),
        ("The answer is 12.", HASHES, None),
        ("#### blue  lamp", HASHES, "blue lamp"),
        ("####", HASHES, None),
        ("First 3, then -1,234.50 euros.", NUMBER, "-1234.5"),
        ("It was 100.", NUMBER, "100"),
        ("None at all.", NUMBER, None),
        ("  Paris \n", TEXT, "Paris"),
        ("NaN", TEXT, "NaN"),
        ("7e2", TEXT, "700"),
    ],
)
def test_final_answers(text: str, extract: Extract, expected: str | None) -> None:
    assert final_answer(text, extract) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "extract", "expected"),
    [
        ("So\n#### 1200", "Because.\n#### 1,200", HASHES, True),
        ("So\n#### 1200", "1,200", HASHES, True),  # a column of bare answers
        ("The answer is 1200", "#### 1,200", HASHES, False),
        ("It is 12 or 13", "#### 13.0", NUMBER, True),
        ("It is 12 or 13", "12", NUMBER, False),
        ("I do not know", "I do not know", NUMBER, False),
        ("Paris", "paris", TEXT, False),
        ("", "", TEXT, False),
    ],
)
def test_matches(answer: str, reference: str, extract: Extract, expected: bool) -> None:
    assert is_match(answer, reference, extract) is expected
