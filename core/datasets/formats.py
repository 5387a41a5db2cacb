"""What the rows of a file mean: their layout, detected from content, and their translation into examples."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from core.datasets.conversations import (
    ROLES,
    as_list,
    as_turns,
    is_blank,
    missing_value,
    read_messages,
    read_text,
    read_tools,
)
from core.datasets.examples import DataFormat, DataKind, Example, Message
from core.datasets.preferences import PREFERENCE, detect_preferences, preferred_messages
from core.datasets.row_errors import RowError
from core.errors import InvalidDatasetError

__all__ = ["RowError", "detect_format", "plain_conversation", "to_example"]

# Pairs of column names that mean a prompt and its completion, most specific first.
_PAIRS: tuple[tuple[str, str, str], ...] = (
    ("prompt_completion", "prompt", "completion"),
    ("question_answer", "question", "answer"),
    ("prompt_completion", "prompt", "response"),
    ("prompt_completion", "prompt", "output"),
    ("prompt_completion", "prompt", "answer"),
    ("alpaca", "instruction", "output"),
    ("prompt_completion", "instruction", "response"),
    ("prompt_completion", "instruction", "completion"),
    ("prompt_completion", "input", "output"),
    ("prompt_completion", "input", "response"),
    ("question_answer", "question", "response"),
    ("question_answer", "query", "answer"),
    ("question_answer", "query", "response"),
    ("prompt_completion", "user", "assistant"),
    ("prompt_completion", "source", "target"),
)
_TEXT_COLUMNS = ("text", "content", "document", "body")
_PAIR_ROLES = {
    "prompt_completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "alpaca": ("instruction", "output"),
}
_SHAPES_HELP = (
    'Use {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    'or {"prompt": "...", "completion": "..."}, or {"text": "..."}, or say which columns to use with `format`.'
)


def detect_format(rows: Sequence[Mapping[str, Any]]) -> DataFormat:
    """The layout of `rows`, a sample from the start of a file.

    Looks at conversations first, then at well-known column names, then at how many columns hold text.
    Raises InvalidDatasetError (`unknown_format`) that names the columns found.
    """
    columns = _common_columns(rows)
    by_name = {name.lower().strip(): name for name in reversed(columns)}
    preferences = detect_preferences(by_name)
    if preferences:
        return _with_system(preferences, by_name)
    pair = _detect_pair(rows, by_name)
    conversation = _detect_conversation(rows, columns) if pair is None or pair.kind is not DataKind.CHAT else None
    found = conversation or pair
    if found:
        return _with_system(found, by_name)
    texts = [name for name in columns if any(isinstance(row.get(name), str) and row[name].strip() for row in rows)]
    named = next((by_name[name] for name in _TEXT_COLUMNS if name in by_name and by_name[name] in texts), None)
    if named or len(texts) == 1:
        return DataFormat("text", DataKind.TEXT, {"text": named or texts[0]})
    if len(texts) == 2:
        return DataFormat("prompt_completion", DataKind.COMPLETION, {"prompt": texts[0], "completion": texts[1]})
    listed = ", ".join(repr(name) for name in columns[:12]) or "none"
    raise InvalidDatasetError(
        f"What the rows mean could not be told from their columns ({listed}). {_SHAPES_HELP}", code="unknown_format"
    )


def _common_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that hold a value in at least half of the rows, in the order met."""
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                counts[name] = counts.get(name, 0) + 1
    return [name for name, count in counts.items() if 2 * count >= len(rows)]


def _detect_conversation(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> DataFormat | None:
    for column in sorted(columns, key=lambda name: name not in ("messages", "conversations", "conversation")):
        values = (as_list(row.get(column)) for row in rows)
        turns = next((turns for turns in values if turns and isinstance(turns[0], Mapping)), None)
        if turns is None:
            continue
        if "role" in turns[0] and ("content" in turns[0] or "tool_calls" in turns[0]):
            return DataFormat("messages", DataKind.CHAT, {"messages": column})
        if "from" in turns[0] and "value" in turns[0]:
            return DataFormat("sharegpt", DataKind.CHAT, {"conversations": column})
    if "messages" in columns:
        return DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
    return None


def _detect_pair(rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, str]) -> DataFormat | None:
    for shape, first, second in _PAIRS:
        if first in by_name and second in by_name:
            roles = _PAIR_ROLES[shape]
            columns = {roles[0]: by_name[first], roles[1]: by_name[second]}
            kind = DataKind.CHAT if _holds_turns(rows, columns.values()) else DataKind.COMPLETION
            if shape == "alpaca" and "input" in by_name:
                columns["input"] = by_name["input"]
            return DataFormat(shape, kind, columns)
    return None


def _holds_turns(rows: Sequence[Mapping[str, Any]], columns: Collection[str]) -> bool:
    """Whether the columns hold messages, as TRL's conversational prompts and completions do."""
    return any(all(as_turns(row.get(column)) is not None for column in columns) for row in rows)


def _with_system(data_format: DataFormat, by_name: Mapping[str, str]) -> DataFormat:
    system = by_name.get("system") or by_name.get("system_prompt")
    if not system or system in data_format.columns.values():
        return data_format
    return DataFormat(data_format.shape, data_format.kind, {**data_format.columns, "system": system})


def to_example(row: Mapping[str, Any], number: int, data_format: DataFormat) -> Example:
    """`row` as an example. `number` is its 1-based row, the line for JSON Lines.

    Raises RowError that names the column or message at fault and says what to change.
    """
    columns = data_format.columns
    if data_format.kind is DataKind.TEXT:
        return Example(number, text=read_text(row, number, columns.get("text", "text")))
    if data_format.shape in _PAIR_ROLES:
        messages = _pair(row, number, data_format)
    elif data_format.shape == PREFERENCE:
        messages = preferred_messages(row, number, columns)
    else:
        is_sharegpt = data_format.shape == "sharegpt"
        name = "conversations" if is_sharegpt else "messages"
        column = columns.get(name, name)
        turns = as_list(row.get(column))
        if turns is None:
            raise missing_value(row, number, column, "a list of messages")
        messages = read_messages(
            turns, number, column, "from" if is_sharegpt else "role", "value" if is_sharegpt else "content"
        )
    if system := _optional_text(row, columns.get("system")):
        messages = (Message("system", system, trained=False), *messages)
    tools = row.get("tools")
    reference = read_text(row, number, columns["reference"]) if "reference" in columns else None
    return Example(number, messages, tools=read_tools(tools, number) if tools else (), reference=reference)


def _optional_text(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return value if isinstance(value, str) else ""


def _pair(row: Mapping[str, Any], number: int, data_format: DataFormat) -> tuple[Message, ...]:
    first, second = _PAIR_ROLES[data_format.shape]
    prompt_column, completion_column = data_format.columns.get(first, first), data_format.columns.get(second, second)
    prompt, completion = as_turns(row.get(prompt_column)), as_turns(row.get(completion_column))
    if prompt is not None and completion is not None:  # TRL's conversational prompt and completion
        asked = read_messages(prompt, number, prompt_column, "role", "content")
        return (
            *(Message(m.role, m.content, trained=False, extra=m.extra) for m in asked),
            *read_messages(completion, number, completion_column, "role", "content"),
        )
    question = read_text(row, number, prompt_column)
    if added := _optional_text(row, data_format.columns.get("input")).strip():
        question = f"{question}\n\n{added}" if question else added
    answer = read_text(row, number, completion_column)
    return Message("user", question, trained=False), Message("assistant", answer, trained=not is_blank(answer))


def plain_conversation(row: Mapping[str, Any], data_format: DataFormat) -> list[str] | None:
    """Roles and texts in turn, where every message is just a known role and a text; None where `to_example` must look.

    The structure check of a large file is mostly this loop, which is five times as fast as building the example.
    """
    if data_format.shape != "messages" or row.get("tools") or len(data_format.columns) > 1:
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
