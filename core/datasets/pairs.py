"""Rows of a prompt and its completion, and what such rows have beside them: an input, a context, earlier turns."""

from collections.abc import Mapping
from typing import Any

from core.datasets.columns import column_of, shortened
from core.datasets.conversations import read_history, read_messages, turns_in, untrained
from core.datasets.examples import DataFormat, Message
from core.datasets.row_errors import RowError
from core.datasets.values import is_blank, read_optional_text, read_text

__all__ = ["PAIR_ROLES", "pair_messages", "read_prompt"]

PAIR_ROLES = {
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "alpaca": ("instruction", "output"),
}


def pair_messages(row: Mapping[str, Any], number: int, data_format: DataFormat) -> tuple[Message, ...]:
    """The turns of a pair; prompt and completion may each be a text or, as TRL has them, messages. Raises RowError."""
    first, second = PAIR_ROLES[data_format.shape]
    prompt_column, completion_column = data_format.columns.get(first, first), data_format.columns.get(second, second)
    asked = read_prompt(row, number, data_format.columns, prompt_column)
    turns = turns_in(row.get(completion_column), number, completion_column)
    if turns is not None:
        return (*asked, *read_messages(turns, number, completion_column))
    answer = read_text(row, number, completion_column)
    return (*asked, Message("assistant", answer, trained=not is_blank(answer)))


def read_prompt(
    row: Mapping[str, Any], number: int, columns: Mapping[str, str], column: str | None
) -> tuple[Message, ...]:
    """What is asked: earlier turns, then the prompt in `column` with input and context below it. Raises RowError."""
    history = column_of(row, columns, "history")
    earlier = read_history(row.get(history), number, history) if history else ()
    turns = turns_in(row.get(column), number, column) if column else None
    asked = untrained(read_messages(turns, number, column)) if turns and column else ()
    texts = [read_text(row, number, column)] if column and turns is None else []
    texts += [read_optional_text(row, number, column_of(row, columns, role)).strip() for role in ("input", "context")]
    question = "\n\n".join(text for text in texts if not is_blank(text))
    if question:
        return (*earlier, *asked, Message("user", question, trained=False))
    if not asked and not earlier and column:
        raise RowError(number, f"the prompt in {shortened(column)} is blank.", column, "Fill it in.")
    return (*earlier, *asked)
