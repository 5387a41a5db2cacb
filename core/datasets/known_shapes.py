"""Shapes of public data sets that hold nothing to train as they are: each refused by its name, with what to do."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from core.datasets.columns import listed, shortened
from core.datasets.conversations import as_alternating
from core.datasets.values import is_python_list
from core.errors import InvalidDatasetError

__all__ = ["KnownShapeError", "problem_of_unread", "problem_of_untrainable"]


class KnownShapeError(InvalidDatasetError):
    """Raised when rows have a shape that is known by its name and cannot be trained as it is."""


Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, str]  # by their plain names

_MESSAGES = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_PAIR = '{"prompt": "...", "completion": "..."}'
_CHOICES = ("choices", "options", "endings")


def problem_of_untrainable(rows: Rows, by_name: Columns, answered: Collection[str], *, is_pair: bool) -> str:
    """Why rows of a shape that is known cannot be trained as they are, "" for others.

    `answered`: columns that hold an answer or a conversation. `is_pair`: there is a prompt with one answer.
    """
    names = set(by_name)
    if problem := _of_columns(rows):
        return problem
    if {"message_id", "text", "role"} <= names or _is_tree(rows, by_name):
        return (
            "The rows are single messages of OpenAssistant's trees. Write each path from a prompt to a good answer as "
            f"one row: {_MESSAGES}."
        )
    if ("role" in names and names & {"content", "text"}) or {"from", "value"} <= names:
        return 'Each row is a single message. Put the messages of each conversation in one row: {"messages": [...]}.'
    if {"prompt", "completions", "labels"} <= names:
        return (
            "The rows hold steps with a label for each, as process reward models use them. Supervised training needs "
            f"whole answers: {_PAIR}."
        )
    if choices := _choices(rows, by_name):
        return (
            f"The rows are multiple-choice questions: {shortened(choices)} holds what can be answered, and the "
            f"question does not say it. Write the choices into the question, and the right one as its answer: {_PAIR}. "
            "Or say with `format` which two columns to train as they are."
        )
    if not is_pair and (several := _several(rows, by_name)):
        return (
            f"{shortened(several)} holds several answers to each prompt, as ranked data and SQuAD have them. Keep the "
            f'best one of each row: {_PAIR}, or two: {{"prompt": ..., "chosen": ..., "rejected": ...}}.'
        )
    if "prompt" in names and not names & set(answered):
        return (
            f"The rows hold prompts without answers. Add what the model should answer: {_PAIR}, or say with `format` "
            "which column holds it."
        )
    return ""


def problem_of_unread(rows: Rows, by_name: Columns, conversations: Collection[str]) -> str:
    """Why rows of a shape that is known could not be read, "" for others. `conversations`: usual columns of those."""
    for column in by_name.values():
        if any(is_python_list(row.get(column)) for row in rows):
            return (
                f"{shortened(column)} holds lists as Python prints them, not JSON. Write them as JSON, or the rows as "
                f'JSON Lines, such as {_MESSAGES}; pandas does with to_json(..., orient="records", lines=True).'
            )
    for column in (by_name[name] for name in conversations if name in by_name):
        if any(as_alternating(row.get(column)) for row in rows):
            return (
                f"{shortened(column)} holds texts that take turns, and which of the two speakers the model should be "
                "is not said. If it is the second, say so with `format`: "
                f'{{"shape": "messages", "columns": {{"messages": "{column[:60]}"}}}}; or write {_MESSAGES}.'
            )
    if _holds_objects(rows, by_name.get("segments"), "label", "text"):
        return (
            "The rows hold segments with a label that says whether each is trained, which skip the chat template. "
            f"Write what is asked and what is answered: {_PAIR}, or {_MESSAGES}."
        )
    if "body" in by_name or {"request", "response"} <= set(by_name):
        return (
            "The rows are recorded requests of an API. Write the messages of each request, and the answer to it as the "
            f"last one, in one row: {_MESSAGES}."
        )
    return _in_single_object(rows)


def _in_single_object(rows: Rows) -> str:
    """Why a file of one object is no row: its rows are in a list inside it."""
    for name, value in rows[0].items() if len(rows) == 1 else ():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            return (
                f"The file is one object, and its rows are in {shortened(name)}. Upload that list alone: a JSON array, "
                f"or one object on each line, such as {_PAIR}."
            )
    return ""


def _of_columns(rows: Rows) -> str:
    """Why a file of one object is no row: its values are whole columns."""
    if len(rows) != 1 or len(rows[0]) < 2 or not _are_columns(list(rows[0].values())):
        return ""
    return (
        f"The file is one object that holds whole columns ({listed(list(rows[0]))}). Write one object for each row, "
        f'such as {_PAIR}; pandas does with to_json(..., orient="records", lines=True).'
    )


def _are_columns(values: Sequence[Any]) -> bool:
    if all(isinstance(value, Mapping) for value in values):
        return all(value.keys() == values[0].keys() and all(key.isdigit() for key in value) for value in values)
    is_list = all(isinstance(value, list) and len(value) > 1 for value in values)
    return is_list and len({len(value) for value in values}) == 1 and all(isinstance(value[0], str) for value in values)


def _is_tree(rows: Rows, by_name: Columns) -> bool:
    column = by_name.get("prompt", "")
    return any(isinstance(row.get(column), Mapping) and "replies" in row[column] for row in rows)


def _choices(rows: Rows, by_name: Columns) -> str | None:
    """The column of what can be answered to a question, beside the one that says which of it is right."""
    if not {"question", "query", "sentence1", "ctx"} & set(by_name):
        return None
    for name in _CHOICES:
        column = by_name.get(name)
        if column and any(isinstance(row.get(column), list | Mapping) and row[column] for row in rows):
            return column
    return None


def _several(rows: Rows, by_name: Columns) -> str | None:
    """The column of several answers to each prompt."""
    for name in ("completions", "responses", "answers", "outputs", "candidates", "generations"):
        column = by_name.get(name)
        if column and any(isinstance(row.get(column), list) or _is_squad(row.get(column)) for row in rows):
            return column
    return None


def _is_squad(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("text"), list)


def _holds_objects(rows: Rows, column: str | None, *keys: str) -> bool:
    values = (row.get(column) for row in rows if column)
    return any(
        isinstance(value, list) and value and isinstance(value[0], Mapping) and all(key in value[0] for key in keys)
        for value in values
    )
