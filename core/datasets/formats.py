"""What the rows of a file mean: their layout, detected from content, and their translation into examples."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson

from core.datasets.examples import DataFormat, DataKind, Example, Message
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
_ROLES = frozenset({"system", "user", "assistant", "tool", "function"})
_ROLE_ALIASES = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_SHAPES_HELP = (
    'Use {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}, '
    'or {"prompt": "...", "completion": "..."}, or {"text": "..."}, or say which columns to use with `format`.'
)


class RowError(InvalidDatasetError):
    """Raised when one row cannot become an example. `problem` says why, `fix` what to change."""

    def __init__(self, row: int, problem: str, param: str | None = None, fix: str = "", *, code: str | None = None):
        super().__init__(f"Row {row}: {problem} {fix}".rstrip(), code=code, param=param)
        self.row, self.problem, self.fix = row, problem, fix

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_row_error, (self.row, self.problem, self.param, self.fix, self.code)


def _rebuild_row_error(row: int, problem: str, param: str | None, fix: str, code: str) -> RowError:
    return RowError(row, problem, param, fix, code=code)


def detect_format(rows: Sequence[Mapping[str, Any]]) -> DataFormat:
    """The layout of `rows`, a sample from the start of a file.

    Looks at conversations first, then at well-known column names, then at how many columns hold text.
    Raises InvalidDatasetError (`unknown_format`) that names the columns found.
    """
    columns = _common_columns(rows)
    by_name = {name.lower().strip(): name for name in reversed(columns)}
    if {"chosen", "rejected"} <= by_name.keys():
        raise InvalidDatasetError(
            "The rows are preference pairs (chosen and rejected), which supervised fine-tuning cannot use as they are. "
            "Keep the chosen answers and upload those as conversations.",
            code="unknown_format",
        )
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
        values = (_as_list(row.get(column)) for row in rows)
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
    return any(all(_as_turns(row.get(column)) is not None for column in columns) for row in rows)


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
        return Example(number, text=_text(row, number, columns.get("text", "text")))
    if data_format.shape in _PAIR_ROLES:
        messages = _pair(row, number, data_format)
    else:
        is_sharegpt = data_format.shape == "sharegpt"
        name = "conversations" if is_sharegpt else "messages"
        column = columns.get(name, name)
        turns = _as_list(row.get(column))
        if turns is None:
            raise _missing(row, number, column, "a list of messages")
        messages = _messages(
            turns, number, column, "from" if is_sharegpt else "role", "value" if is_sharegpt else "content"
        )
    if system := _optional_text(row, columns.get("system")):
        messages = (Message("system", system, trained=False), *messages)
    tools = row.get("tools")
    reference = _text(row, number, columns["reference"]) if "reference" in columns else None
    return Example(number, messages, tools=_tools(tools, number) if tools else (), reference=reference)


def _missing(row: Mapping[str, Any], number: int, column: str, wanted: str) -> RowError:
    if column in row:
        problem = f"{column!r} is {_kind(row[column])}, not {wanted}."
    else:
        problem = f"there is no {column!r}; the row has {', '.join(map(repr, list(row)[:8])) or 'no columns'}."
    return RowError(number, problem, column, f"Give every row {wanted} in {column!r}.")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _text(row: Mapping[str, Any], number: int, column: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return _join_parts(value, number, column)
    raise _missing(row, number, column, "text")


def _optional_text(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    return value if isinstance(value, str) else ""


def _pair(row: Mapping[str, Any], number: int, data_format: DataFormat) -> tuple[Message, ...]:
    first, second = _PAIR_ROLES[data_format.shape]
    prompt_column, completion_column = data_format.columns.get(first, first), data_format.columns.get(second, second)
    prompt, completion = _as_turns(row.get(prompt_column)), _as_turns(row.get(completion_column))
    if prompt is not None and completion is not None:  # TRL's conversational prompt and completion
        asked = _messages(prompt, number, prompt_column, "role", "content")
        return (
            *(Message(m.role, m.content, trained=False, extra=m.extra) for m in asked),
            *_messages(completion, number, completion_column, "role", "content"),
        )
    question = _text(row, number, prompt_column)
    if added := _optional_text(row, data_format.columns.get("input")).strip():
        question = f"{question}\n\n{added}" if question else added
    answer = _text(row, number, completion_column)
    return Message("user", question, trained=False), Message("assistant", answer, trained=not _is_blank(answer))


def _as_turns(value: object) -> list[Any] | None:
    turns = value if isinstance(value, list) else None
    return turns if turns and isinstance(turns[0], Mapping) and "role" in turns[0] else None


def _as_list(value: object) -> list[Any] | None:
    """A list, also where a table stores it as JSON text."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
        return parsed if isinstance(parsed, list) else None
    return None


def _messages(turns: list[Any], number: int, column: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    if not turns:
        raise RowError(
            number, f"{column!r} is an empty list.", column, "Give at least a user and an assistant message."
        )
    return tuple([_message(turn, number, column, index, role_key, content_key) for index, turn in enumerate(turns)])


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
        if type(content) is not str or type(role) is not str or role not in _ROLES:
            return None
        plain += (role, content)
    return plain


def _message(turn: Any, number: int, column: str, index: int, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict):
        param = f"{column}[{index}]"
        raise RowError(number, f"{param} is {_kind(turn)}, not an object.", param, "Give it a role and content.")
    role, content = turn.get(role_key), turn.get(content_key)
    if not isinstance(role, str) or role not in _ROLES:
        role = _known_role(role, number, f"{column}[{index}].{role_key}")
    extra = {k: v for k, v in turn.items() if v is not None and k not in (role_key, content_key, "weight")}
    if "tool_calls" in extra:
        extra["tool_calls"] = [_tool_call(call) for call in _tool_calls(extra["tool_calls"], number, column, index)]
    text = _content(content, number, f"{column}[{index}].{content_key}", may_be_null=bool(extra.get("tool_calls")))
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        param = f"{column}[{index}].weight"
        raise RowError(number, f"{param} is {weight!r}.", param, "A weight is 0 (not trained) or 1 (trained).")
    says_something = not _is_blank(text) or bool(extra.get("tool_calls"))
    return Message(role, text, role == "assistant" and weight != 0 and says_something, extra)


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _known_role(role: object, number: int, param: str) -> str:
    known = _ROLE_ALIASES.get(role) if isinstance(role, str) else None
    if known is None and isinstance(role, str):
        lowered = role.strip().lower()
        known = lowered if lowered in _ROLES else _ROLE_ALIASES.get(lowered)
    if known is None:
        problem = f"{param} is missing." if role is None else f"{param} is {str(role)[:40]!r}."
        raise RowError(number, problem, param, "Use system, user, assistant or tool.")
    return known


def _content(content: object, number: int, param: str, *, may_be_null: bool) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return _join_parts(content, number, param)
    if content is None and may_be_null:
        return ""
    raise RowError(number, f"{param} is {_kind(content)}, not text.", param, "Give every message its text.")


def _join_parts(parts: list[Any], number: int, param: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else _kind(part)
            raise RowError(
                number, f"{param}[{index}] is of type {kind!r}.", f"{param}[{index}]", "Only text parts can be trained."
            )
        texts.append(text)
    return "".join(texts)


def _tool_calls(value: object, number: int, column: str, index: int) -> Iterator[dict[str, Any]]:
    param = f"{column}[{index}].tool_calls"
    calls = _as_list(value)
    if calls is None or not all(isinstance(call, dict) for call in calls):
        raise RowError(number, f"{param} is not a list of objects.", param, "Use OpenAI's tool call objects.")
    return iter(calls)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object, as templates expect them; OpenAI's wire has them as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"])
    except orjson.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _tools(value: object, number: int) -> tuple[dict[str, Any], ...]:
    tools = _as_list(value)
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(number, "'tools' is not a list of objects.", "tools", "Use OpenAI's tool definitions.")
    return tuple(tools)
