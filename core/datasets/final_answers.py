"""Whether a generated answer comes to the same as the reference: exact match, as on GSM8K."""

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum

__all__ = ["ExactMatch", "Extract", "final_answer", "is_match"]

_MARK = "####"
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


class Extract(StrEnum):
    """What of a text is its final answer."""

    AFTER_HASHES = "after_hashes"  # what follows the last ####, as in GSM8K
    LAST_NUMBER = "last_number"
    TEXT = "text"  # all of it


@dataclass(frozen=True)
class ExactMatch:
    """How answers to held-out rows are compared. `column` holds the reference; None: the row's own answer."""

    extract: Extract
    column: str | None = None
    rows: int = 32  # held-out rows that are answered, at most
    max_new_tokens: int = 256


def final_answer(text: str, extract: Extract) -> str | None:
    """The final answer of a text, numbers in one spelling (1,200.0 is 1200); None where there is none."""
    if extract is Extract.AFTER_HASHES:
        _, mark, text = text.rpartition(_MARK)
        if not mark:
            return None
        text = text.strip().partition("\n")[0]
    elif extract is Extract.LAST_NUMBER:
        numbers = _NUMBER.findall(text)
        text = numbers[-1] if numbers else ""
    words = " ".join(text.split())
    return _plain_number(words) or words or None


def is_match(answer: str, reference: str, extract: Extract) -> bool:
    """Whether both have a final answer and it is the same. A reference may be the bare answer, without a ####."""
    expected = final_answer(reference, extract)
    if expected is None and extract is Extract.AFTER_HASHES:
        expected = final_answer(reference, Extract.TEXT)
    return expected is not None and final_answer(answer, extract) == expected


def _plain_number(text: str) -> str:
    try:
        number = Decimal(text.strip("$€£%. ").replace(",", ""))
    except InvalidOperation:
        return ""
    return format(number.normalize(), "f") if number.is_finite() else ""
