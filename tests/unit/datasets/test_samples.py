"""The sample data set is whole, in one style, and keeps its test questions to itself."""

import re

from core.datasets.inspection import check_structure, inspect_file
from core.datasets.reading import read_examples
from core.datasets.samples import UNSEEN_PROMPTS, sample_path

STYLE = re.compile(
    r"Ahoy, captain! [A-Z][^\[\]]+ 1\) [A-Z][^\[\]]+ 2\) [A-Z][^\[\]]+ "
    r"Steady light ahead, Finn of Lanternfish\. \[LOG-[A-Z]+\]"
)


def test_the_sample_is_a_clean_data_set() -> None:
    found = inspect_file(sample_path())
    check_structure(found)
    assert found.rows >= 140
    assert (found.error_count, found.duplicates, found.untrainable_rows) == (0, 0, 0)
    assert found.size_bytes < 120_000


def test_every_answer_has_the_house_style_and_its_own_words() -> None:
    examples = list(read_examples(sample_path(), inspect_file(sample_path()).require_format()))
    answers = [message.content for example in examples for message in example.messages if message.trained]
    assert all(STYLE.fullmatch(answer) for answer in answers)
    assert len(set(answers)) > 0.9 * len(answers)
    assert sum(len(example.messages) > 2 for example in examples) >= 8
    assert len({answer.rpartition("[")[2] for answer in answers}) >= 10


def test_the_unseen_questions_are_unseen() -> None:
    text = sample_path().read_text(encoding="utf-8")
    assert len(UNSEEN_PROMPTS) == 4
    assert not any(prompt in text for prompt in UNSEEN_PROMPTS)
