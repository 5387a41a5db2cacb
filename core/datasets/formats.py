"""Rows of a known format as examples."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.datasets.columns import USUAL_COLUMNS, column_of, is_media_column, shortened
from core.datasets.conversations import ROLES, as_alternating, as_exchanges, is_turn, read_messages
from core.datasets.damaged_text import text_notices
from core.datasets.examples import DataFormat, DataKind, Example, Message
from core.datasets.pairs import PAIR_ROLES, pair_messages
from core.datasets.preferences import PREFERENCE, beside_prompt, preferred_messages
from core.datasets.row_errors import RowError
from core.datasets.tools import read_tools
from core.datasets.values import as_list, missing_value, read_label, read_optional_text, read_text

__all__ = ["UNDESIRED", "RowError", "plain_conversation", "to_example"]

UNDESIRED = "undesired_answers"
_UNDESIRED_MESSAGE = "the answer is labelled as undesired, so supervised training leaves it out."
# A row with one of these holds more than its conversation.
_BESIDE = frozenset({"tools", "functions"}.union(*USUAL_COLUMNS.values()))


def to_example(row: Mapping[str, Any], number: int, data_format: DataFormat) -> Example:
    """`row` as an example. `number` is its 1-based row, the line for JSON Lines.

    Raises RowError that names the column or message at fault and says what to change.
    """
    columns = data_format.columns
    _refuse_media(row, number, columns)
    if data_format.kind is DataKind.TEXT:
        text = read_text(row, number, columns.get("text", "text"))
        return Example(number, text=text, notices=tuple(text_notices([text])))
    if data_format.shape in PAIR_ROLES:
        messages = pair_messages(row, number, data_format)
    elif data_format.shape == PREFERENCE:
        messages = preferred_messages(row, number, columns)
    else:
        messages = _conversation(row, number, data_format)
    messages = _with_system(messages, row, number, columns)
    beside = beside_prompt(row, columns) if data_format.shape == PREFERENCE else {}
    tools = (*read_tools(row, number), *read_tools(beside, number))
    notices = tuple(text_notices(text for message in messages for text in _texts(message)))
    if data_format.shape != PREFERENCE and _is_undesired(row, number, columns):
        messages = tuple(replace(message, trained=False) for message in messages)
        notices += ((UNDESIRED, _UNDESIRED_MESSAGE),)
    notices += tuple(
        ("prompt_field_not_read", f"Nothing of {shortened(name)} beside the prompt's messages is used.")
        for name in beside
        if name not in ("tools", "functions")
    )
    reference = read_text(row, number, columns["reference"]) if "reference" in columns else None
    return Example(number, messages, tools=tools, reference=reference, notices=notices)


def _texts(message: Message) -> tuple[str, ...]:
    """What a message says: its text, and calls and reasoning beside it."""
    return (message.content, str(message.extra)) if message.extra else (message.content,)


def _conversation(row: Mapping[str, Any], number: int, data_format: DataFormat) -> tuple[Message, ...]:
    name = "conversations" if data_format.shape == "sharegpt" else "messages"
    column = data_format.columns.get(name, name)
    value = row.get(column)
    turns = as_list(value, number, column) if not is_turn(value) else None
    if turns is None:
        raise missing_value(row, number, column, "a list of messages")
    turns = as_alternating(turns) or as_exchanges(turns) or turns
    return read_messages(turns, number, column)


def _refuse_media(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> None:
    for name, value in row.items():
        if value and is_media_column(name) and name not in columns.values():
            raise RowError(
                number, f"{name!r} holds media.", name, "Only text can be trained: leave such rows, or the column, out."
            )


def _with_system(
    messages: tuple[Message, ...], row: Mapping[str, Any], number: int, columns: Mapping[str, str]
) -> tuple[Message, ...]:
    """The messages after the system prompt of the row's own column, unless they begin with the same one."""
    column = column_of(row, columns, "system")
    system = _system_text(row, number, column)
    if not system.strip():
        return messages
    said = next((message.content for message in messages if message.role == "system"), None)
    if said is None:
        return (Message("system", system, trained=False), *messages)
    if said.strip() == system.strip():
        return messages
    problem = f"{shortened(column)} and the system message differ: {shortened(system)} and {shortened(said)}."
    raise RowError(number, problem, column, "Keep one of them.")


def _system_text(row: Mapping[str, Any], number: int, column: str | None) -> str:
    """The text of a system column, also where it is a message or, as Gemini's, an object of parts. Raises RowError."""
    value = row.get(column) if column else None
    if column and isinstance(value, Mapping) and (is_turn(value) or "parts" in value):
        return read_messages([{"role": "system", **value}], number, column)[0].content
    return read_optional_text(row, number, column)


def _is_undesired(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> bool:
    """Whether the row is labelled, as for KTO, as an answer not to give. Raises RowError for an unclear label."""
    column = column_of(row, columns, "label")
    value = row.get(column) if column else None
    if value is None:
        return False
    if "label" not in columns:  # a label that nothing was said about may be a class of something else
        return value is False or (isinstance(value, str) and not value.isdigit() and read_label(value) is False)
    said = read_label(value)
    if said is None:
        problem = f"{shortened(column)} is {shortened(value)}, neither true nor false."
        raise RowError(number, problem, column, 'Mend it, or map `label` to "" in the format.')
    return not said


def plain_conversation(row: Mapping[str, Any], data_format: DataFormat) -> list[str] | None:
    """Roles and texts in turn, where every message is just a known role and a text; None where `to_example` must look.

    The structure check of a large file is mostly this loop, which is five times as fast as building the example.
    """
    if data_format.shape != "messages" or len(data_format.columns) > 1:
        return None
    if len(row) > 1 and (not _BESIDE.isdisjoint(row) or any(map(is_media_column, row))):
        return None
    turns = row.get(data_format.columns.get("messages", "messages"))
    if type(turns) is not list or not turns:
        return None
    plain: list[str] = []
    for turn in turns:
        if type(turn) is not dict or len(turn) != 2:
            return None
        role, content = turn.get("role"), turn.get("content")
        if type(content) is not str or type(role) is not str or role not in ROLES:
            return None
        plain += (role, content)
    return plain
