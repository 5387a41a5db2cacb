"""Messages as rows hold them: roles by any of their names, text or typed parts, weights, calls of tools."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from core.datasets.examples import Message
from core.datasets.row_errors import RowError

__all__ = ["ROLES", "as_list", "as_turns", "is_blank", "missing_value", "read_messages", "read_text", "read_tools"]

ROLES = frozenset({"system", "user", "assistant", "tool", "function"})
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


def missing_value(row: Mapping[str, Any], number: int, column: str, wanted: str) -> RowError:
    """The error of a row whose `column` is not `wanted`."""
    if column in row:
        problem = f"{column!r} is {_kind(row[column])}, not {wanted}."
    else:
        problem = f"there is no {column!r}; the row has {', '.join(map(repr, list(row)[:8])) or 'no columns'}."
    return RowError(number, problem, column, f"Give every row {wanted} in {column!r}.")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_text(row: Mapping[str, Any], number: int, column: str) -> str:
    """The text in `column`; numbers and typed parts are read as text. Raises RowError."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return _join_parts(value, number, column)
    raise missing_value(row, number, column, "text")


def as_turns(value: object) -> list[Any] | None:
    """The messages in a value, if that is what it holds."""
    turns = value if isinstance(value, list) else None
    return turns if turns and isinstance(turns[0], Mapping) and "role" in turns[0] else None


def as_list(value: object) -> list[Any] | None:
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


def read_messages(turns: list[Any], number: int, column: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    """The turns of a row, each checked. Raises RowError that names the message."""
    if not turns:
        raise RowError(
            number, f"{column!r} is an empty list.", column, "Give at least a user and an assistant message."
        )
    return tuple([_message(turn, number, column, index, role_key, content_key) for index, turn in enumerate(turns)])


def _message(turn: Any, number: int, column: str, index: int, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict):
        param = f"{column}[{index}]"
        raise RowError(number, f"{param} is {_kind(turn)}, not an object.", param, "Give it a role and content.")
    role, content = turn.get(role_key), turn.get(content_key)
    if not isinstance(role, str) or role not in ROLES:
        role = _known_role(role, number, f"{column}[{index}].{role_key}")
    extra = {k: v for k, v in turn.items() if v is not None and k not in (role_key, content_key, "weight")}
    if "tool_calls" in extra:
        extra["tool_calls"] = [_tool_call(call) for call in _tool_calls(extra["tool_calls"], number, column, index)]
    text = _content(content, number, f"{column}[{index}].{content_key}", may_be_null=bool(extra.get("tool_calls")))
    weight = turn.get("weight")
    if weight is not None and weight not in (0, 1):
        param = f"{column}[{index}].weight"
        raise RowError(number, f"{param} is {weight!r}.", param, "A weight is 0 (not trained) or 1 (trained).")
    says_something = not is_blank(text) or bool(extra.get("tool_calls"))
    return Message(role, text, role == "assistant" and weight != 0 and says_something, extra)


def is_blank(text: str) -> bool:
    """Whether nothing is written there."""
    return not text or text.isspace()


def _known_role(role: object, number: int, param: str) -> str:
    known = _ROLE_ALIASES.get(role) if isinstance(role, str) else None
    if known is None and isinstance(role, str):
        lowered = role.strip().lower()
        known = lowered if lowered in ROLES else _ROLE_ALIASES.get(lowered)
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
    calls = as_list(value)
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


def read_tools(value: object, number: int) -> tuple[dict[str, Any], ...]:
    """Definitions of tools. Raises RowError."""
    tools = as_list(value)
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(number, "'tools' is not a list of objects.", "tools", "Use OpenAI's tool definitions.")
    return tuple(tools)
