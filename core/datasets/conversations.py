"""Messages as rows hold them: roles by any of their names, text or typed parts, weights, calls of tools."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.datasets.columns import listed, shortened
from core.datasets.examples import Message
from core.datasets.numbers import load_json
from core.datasets.row_errors import RowError
from core.datasets.values import Parts, as_list, is_blank, kind_of, read_flag, read_parts, refuse_repeated_keys

__all__ = [
    "ROLES",
    "as_alternating",
    "as_exchanges",
    "as_turns",
    "how_to_name",
    "is_turn",
    "read_history",
    "read_messages",
]
__all__ += ["turns_in", "untrained"]

ROLES = frozenset({"system", "user", "assistant", "tool"})
_ROLE_ALIASES = {
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "gemini": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
}
_CALLING_ROLES = ("function_call", "tool_call")
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "parts", "text")
# The keys of objects that hold a question with its answer, a list of which is a conversation.
_EXCHANGES = (
    ("input", "output"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
_ASKING_FLAGS = ("train", "training", "trainable")  # say for any turn whether it is trained
_FLAGS = ("weight", "loss", "loss_weight", *_ASKING_FLAGS)
_READ_KEYS = frozenset({*_FLAGS, "function_call", "tool_calls"})


def is_turn(value: object) -> bool:
    """Whether a value is a message: an object that says who speaks."""
    return isinstance(value, Mapping) and any(key in value for key in _ROLE_KEYS)


def how_to_name(value: object) -> str:
    """What to do about a row that is no object."""
    if isinstance(value, list) and value and is_turn(value[0]):
        return 'Wrap each list: {"messages": [...]}.'
    return 'Write each row as an object: {"prompt": "...", "completion": "..."}.'


def as_turns(value: object) -> list[Any] | None:
    """The messages in a value, if that is what it holds: a list of them, one alone, or an object of `messages`."""
    if isinstance(value, Mapping):
        value = value.get("messages", [value])
    return value if isinstance(value, list) and value and is_turn(value[0]) else None


def turns_in(value: object, number: int = 0, column: str = "") -> list[Any] | None:
    """The messages in a value, also where a table stores them as JSON text.

    Other JSON is a text: an answer may well be an object with a `from`. With the row's number, raises RowError for a
    key that an object of that text has twice.
    """
    if not isinstance(value, str):
        return as_turns(value)
    if value.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        parsed = load_json(value)
    except (ValueError, RecursionError):
        return None
    turns = as_turns(parsed)
    if turns is None or not all(map(_says_who_says_what, turns)):
        return None
    if number:
        refuse_repeated_keys(parsed, value, number, column)
    return turns


def _says_who_says_what(turn: object) -> bool:
    if not isinstance(turn, Mapping):
        return False
    role = next((turn[key] for key in _ROLE_KEYS if key in turn), None)
    is_known = isinstance(role, str) and (role.lower() in ROLES or role.lower() in _ROLE_ALIASES)
    return is_known and any(key in turn for key in (*_CONTENT_KEYS, "tool_calls", "function_call"))


def as_alternating(value: object) -> list[Any] | None:
    """The turns of a list of texts in which user and assistant alternate, as UltraChat has them."""
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) for text in value):
        return None
    return [{"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(value)]


def as_exchanges(value: object) -> list[Any] | None:
    """The turns of a list of questions with their answers, as Capybara has them. What else they hold stays with the
    answers.
    """
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        return None
    keys = next((pair for pair in _EXCHANGES if all(key in one for one in value for key in pair)), None)
    if keys is None:
        return None
    asked, said = keys
    turns: list[Any] = []
    for one in value:
        others = {key: held for key, held in one.items() if key not in keys}
        turns += [{"role": "user", "content": one[asked]}, {**others, "role": "assistant", "content": one[said]}]
    return turns


def untrained(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages as a prompt: nothing of them is trained, and a blank answer at its end is left to be given."""
    if messages and messages[-1].role == "assistant" and is_blank(messages[-1].content) and not messages[-1].extra:
        messages = messages[:-1]
    return tuple(replace(message, trained=False) for message in messages)


def read_messages(turns: list[Any], number: int, column: str) -> tuple[Message, ...]:
    """The turns of a row, each checked. Raises RowError that names the message."""
    if not turns:
        raise RowError(
            number, f"{column!r} is an empty list.", column, "Give at least a user and an assistant message."
        )
    return tuple([_message(turn, number, f"{column}[{index}]") for index, turn in enumerate(turns)])


def read_history(value: object, number: int, column: str) -> tuple[Message, ...]:
    """Earlier turns, as messages or as pairs of a question and its answer. Raises RowError."""
    if value is None or value == "":
        return ()
    turns = as_list(value, number, column)
    if turns is None:
        raise RowError(number, f"{column!r} is {kind_of(value)}, not a list.", column, "Give pairs of texts.")
    if turns and is_turn(turns[0]):
        return read_messages(turns, number, column)
    messages: list[Message] = []
    for index, pair in enumerate(turns):
        texts = pair if isinstance(pair, list | tuple) else ()
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            param = f"{column}[{index}]"
            raise RowError(number, f"{param} is no pair of texts.", param, "Give a question and its answer.")
        messages.append(Message("user", texts[0], trained=False))
        messages.append(Message("assistant", texts[1], trained=not is_blank(texts[1])))
    return tuple(messages)


def _message(turn: Any, number: int, param: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(number, f"{param} is {kind_of(turn)}, not an object.", param, "Give it a role and content.")
    role_key = next((key for key in _ROLE_KEYS if key in turn), "role")
    content_key = next((key for key in _CONTENT_KEYS if turn.get(key) is not None), "content")
    content_key = content_key if content_key in turn else next((key for key in _CONTENT_KEYS if key in turn), "content")
    role = said_role = turn.get(role_key)
    if not isinstance(role, str) or role not in ROLES:
        role = _known_role(role, number, f"{param}.{role_key}", turn)
    calls = _calls(turn, number, param)
    if said_role in _CALLING_ROLES:
        parts = Parts("", calls=(turn.get(content_key),))
    else:
        parts = _content(turn.get(content_key), number, f"{param}.{content_key}", may_be_null=bool(calls))
    calls += [call for part in parts.calls for call in _written_calls(part, number, f"{param}.{content_key}")]
    extra = {
        key: value
        for key, value in turn.items()
        if value is not None and key not in _READ_KEYS and key not in (role_key, content_key)
    }
    if parts.reasoning:
        extra.setdefault("reasoning_content", parts.reasoning)
    if calls:
        extra["tool_calls"] = calls
    is_wanted = _is_wanted(turn, role, number, param)
    return Message(role, parts.text, role == "assistant" and is_wanted and _says_something(parts.text, calls), extra)


def _says_something(text: str, calls: list[Any]) -> bool:
    return not is_blank(text) or bool(calls)


def _known_role(role: object, number: int, param: str, turn: Mapping[str, Any]) -> str:
    known = _ROLE_ALIASES.get(role) if isinstance(role, str) else None
    if known is None and isinstance(role, str):
        lowered = role.strip().lower()
        known = lowered if lowered in ROLES else _ROLE_ALIASES.get(lowered)
    if known is None:
        problem = f"{param} is missing; the message has {listed(list(turn), 8)}."
        if role is not None:
            problem = f"{param} is {shortened(str(role), 40)}."
        raise RowError(number, problem, param, "Use system, user, assistant or tool.")
    return known


def _is_wanted(turn: Mapping[str, Any], role: str, number: int, param: str) -> bool:
    """Whether no flag of the turn says that it is not trained. Raises RowError for flags that cannot be obeyed."""
    is_wanted = True
    for flag in _FLAGS:
        value = turn.get(flag)
        if value is None:
            continue
        said = read_flag(value)
        if said is None:
            problem = f"{param}.{flag} is {shortened(value)}."
            raise RowError(number, problem, f"{param}.{flag}", "A weight is 0 (not trained) or 1 (trained).")
        if said and role != "assistant" and flag in _ASKING_FLAGS:
            problem = f"{param}.{flag} asks to train a turn of the {role}."
            raise RowError(number, problem, f"{param}.{flag}", "Only the assistant's turns are trained: leave it out.")
        is_wanted = is_wanted and said
    return is_wanted


def _content(content: object, number: int, param: str, *, may_be_null: bool) -> Parts:
    if isinstance(content, str):
        return Parts(content)
    if isinstance(content, list):
        return read_parts(content, number, param)
    if content is None and may_be_null:
        return Parts("")
    raise RowError(number, f"{param} is {kind_of(content)}, not text.", param, "Give every message its text.")


def _calls(turn: Mapping[str, Any], number: int, param: str) -> list[dict[str, Any]]:
    """The calls of a turn, its arguments as objects; OpenAI's older `function_call` is one of them."""
    calls: list[Any] = []
    if turn.get("tool_calls") is not None:
        listed_calls = as_list(turn["tool_calls"], number, f"{param}.tool_calls")
        if listed_calls is None or not all(isinstance(call, Mapping) for call in listed_calls):
            where = f"{param}.tool_calls"
            raise RowError(number, f"{where} is not a list of objects.", where, "Use OpenAI's tool call objects.")
        calls += listed_calls
    older = turn.get("function_call")
    if older is not None:
        if not isinstance(older, Mapping) or not isinstance(older.get("name"), str) or calls:
            where = f"{param}.function_call"
            problem = f"{where} stands beside tool_calls." if calls else f"{where} is not an object with a name."
            raise RowError(number, problem, where, "Use tool_calls, a list of OpenAI's tool call objects.")
        calls.append(older)
    return [_call(call, number, f"{param}.tool_calls[{index}]") for index, call in enumerate(calls)]


def _call(call: Mapping[str, Any], number: int, param: str) -> dict[str, Any]:
    """The call as templates expect it: inside `function`, its arguments an object; on the wire they are JSON text.

    Raises RowError for arguments that name one twice.
    """
    if "function" not in call and "name" in call:
        outside = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        inside = {key: call[key] for key in ("name", "arguments") if key in call}
        call = {**outside, "type": "function", "function": inside}
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = load_json(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    refuse_repeated_keys(arguments, function["arguments"], number, f"{param}.arguments")
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else dict(call)


def _written_calls(value: object, number: int, param: str) -> list[dict[str, Any]]:
    """Calls that a turn holds as JSON, as LLaMA-Factory writes them. Raises RowError."""
    if isinstance(value, str):
        text = value
        try:
            value = load_json(text)
        except (ValueError, RecursionError):
            value = None
        else:
            refuse_repeated_keys(value, text, number, param)
    calls = [
        _call(call, number, param)
        for call in (value if isinstance(value, list) else [value])
        if isinstance(call, Mapping) and isinstance(call.get("name"), str)
    ]
    if len(calls) != (len(value) if isinstance(value, list) else 1):
        problem = f"{param} is no call of a tool."
        raise RowError(number, problem, param, 'Write it as {"name": "...", "arguments": {...}}.')
    return calls
