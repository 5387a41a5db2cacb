"""Whether every part of a row reaches the rendered text.

A part is found by what changes: each gets a word of its own that no data holds, and the template is asked again. The
text itself cannot tell, because templates trim, escape and reformat, and short texts also stand elsewhere. Rows of one
shape (the same roles and fields, whatever they say) are treated alike by templates, so each shape is looked at once.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from core.datasets.examples import Example, Message
from core.datasets.templates import (
    REASONING_FIELDS,
    THINK_END,
    ChatTemplate,
    TemplateRejectedError,
    template_message,
)

__all__ = ["Lost", "lost_parts", "row_shape"]

_WHOLE = {"tool_calls_not_rendered": "tool calls", "tools_not_rendered": "tools"}

Path = tuple[str | int, ...]
Row = Mapping[str, Any]  # `messages` and `tools` as templates get them

_READ_APART = ("role", "content", "tool_calls", "tool_call_id", "type", "index", *REASONING_FIELDS)


@dataclass(frozen=True)
class Lost:
    """A part of a row that its rendering lacks. `index` is its message's; None for definitions of tools.

    `code` is that of the notice, `part` a noun; `is_trained`: it is what the model should have learned.
    """

    code: str
    part: str
    role: str | None
    index: int | None
    is_trained: bool


@dataclass(frozen=True)
class _Part:
    lost: Lost
    paths: tuple[Path, ...]
    mark: Callable[[Any, str], Any]  # the value with a word added
    replace: Callable[[Any, str], Any]  # another value, or none where the word is empty
    is_marked_alone: bool = False  # a template may refuse a value of another form


def row_shape(example: Example) -> tuple[object, ...]:
    """What of a row decides how a template treats it: equal for rows that differ in their words only."""
    messages = tuple([(m.role, m.trained, _text_shape(m.content), _fields_shape(m.extra)) for m in example.messages])
    return messages, _value_shape(example.tools)


def _text_shape(text: str) -> int:
    return (bool(text) and not text.isspace()) + 2 * (THINK_END in text)


def _fields_shape(extra: Mapping[str, Any]) -> object:
    return tuple([(name, _value_shape(extra[name])) for name in sorted(extra)]) if extra else ()


def _value_shape(value: object, depth: int = 4) -> object:
    """Types, and names of fields down to arguments and properties, whose own are data."""
    if depth > 1 and isinstance(value, Mapping):
        return tuple(
            [(str(name), _value_shape(value[name], 1 if name == "arguments" else depth - 1)) for name in value]
        )
    if depth > 1 and isinstance(value, list | tuple):
        return tuple([_value_shape(item, depth) for item in value])
    return type(value).__name__, bool(value)


def lost_parts(template: ChatTemplate, example: Example) -> tuple[Lost, ...]:
    """The parts of the row that its rendering lacks. Raises TemplateRejectedError where there is none."""
    row: Row = {"messages": [template_message(message) for message in example.messages], "tools": list(example.tools)}
    messages = row["messages"]
    parts = [*_message_parts(example.messages, messages), *_id_parts(messages), *_tool_parts(row["tools"])]
    if not parts:
        return ()
    text = _render(template, row)
    together = row
    for number, part in enumerate(parts):
        if not part.is_marked_alone:
            together = _changed(together, part.paths, part.mark, _word(number))
    try:
        marked = _render(template, together).casefold()
    except TemplateRejectedError:
        marked = ""
    groups: dict[tuple[str, str, str | None], list[_Part]] = {}
    for number, part in enumerate(parts):
        if _word(number) not in marked:
            groups.setdefault((part.lost.code, part.lost.part, part.lost.role), []).append(part)
    missing = [part for group in groups.values() for part in _missing(template, row, text, group)]
    return tuple(_told_once(template, row, parts, missing))


def _missing(template: ChatTemplate, row: Row, text: str, group: Sequence[_Part]) -> list[_Part]:
    """Those parts of a kind without which the rendering is the same; all of a kind are usually treated alike."""
    if not _matter(template, row, text, group):
        return list(group)
    return [part for part in group if len(group) > 1 and not _matter(template, row, text, [part])]


def _word(number: int) -> str:
    return f"zqx{number}xqz"


def _render(template: ChatTemplate, row: Row) -> str:
    return template.render(row["messages"], row["tools"])


def _matter(template: ChatTemplate, row: Row, text: str, parts: Sequence[_Part]) -> bool:
    """Whether the rendering is another one where these parts are other ones, are empty, and say a word more."""
    for word, adds in ((_word(0), False), ("", False), (_word(0), True)):
        changed = row
        for part in parts:
            changed = _changed(changed, part.paths, part.mark if adds else part.replace, word)
        try:
            if _render(template, changed) == text:
                return False
        except TemplateRejectedError:
            continue  # it was read
    return True


def _changed(row: Row, paths: Sequence[Path], change: Callable[[Any, str], Any], word: str) -> Row:
    for path in paths:
        row = _put(row, path, lambda value: change(value, word))
    return row


def _put(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    copied = copy(value)
    copied[path[0]] = _put(copied[path[0]], path[1:], change)
    return copied


def _told_once(template: ChatTemplate, row: Row, parts: Sequence[_Part], missing: Sequence[_Part]) -> list[Lost]:
    """What is lost: a call or a definition of which nothing is left by its own name.

    A thought that the template shows while its turn is the last is meant to go from earlier turns: the model will not
    see it there either, so nothing is lost of what it should learn.
    """
    gone = set(map(id, missing))
    kept = {(part.lost.code, part.lost.index) for part in parts if id(part) not in gone}
    told: dict[Lost, None] = {}
    for part in missing:
        lost = part.lost
        if lost.code in _WHOLE and (lost.code, lost.index) not in kept:
            lost = replace(lost, part=_WHOLE[lost.code])
        if lost.code == "reasoning_not_rendered" and lost.is_trained and _is_shown_when_last(template, row, part):
            lost = replace(lost, is_trained=False)
        told[lost] = None
    return list(told)


def _is_shown_when_last(template: ChatTemplate, row: Row, part: _Part) -> bool:
    assert part.lost.index is not None
    ended: Row = {**row, "messages": row["messages"][: part.lost.index + 1]}
    try:
        return _word(0) in _render(template, _changed(ended, part.paths, part.mark, _word(0))).casefold()
    except TemplateRejectedError:
        return False


def _message_parts(messages: Sequence[Message], payload: Sequence[Mapping[str, Any]]) -> list[_Part]:
    parts: list[_Part] = []
    for index, (message, fields) in enumerate(zip(messages, payload, strict=True)):
        at: Path = ("messages", index)
        parts += _text_parts(message, index)
        thoughts = tuple((*at, name) for name in REASONING_FIELDS if isinstance(fields.get(name), str) and fields[name])
        if thoughts:
            lost = Lost("reasoning_not_rendered", "reasoning", message.role, index, message.trained)
            parts.append(_Part(lost, thoughts, _appended, _replaced))
        for number, call in enumerate(fields.get("tool_calls") or ()):
            parts += _call_parts(call, (*at, "tool_calls", number), message, index)
        for name, value in fields.items():
            if name not in _READ_APART and value not in ("", [], {}):
                lost = Lost("field_not_rendered", f"`{name}`", message.role, index, is_trained=False)
                is_text = isinstance(value, str)
                parts.append(_Part(lost, ((*at, name),), _joined, _replaced, is_marked_alone=not is_text))
    return parts


def _id_parts(messages: Sequence[Mapping[str, Any]]) -> list[_Part]:
    """The ids that say which answer belongs to which call, as one part: templates check that they agree."""
    paths: list[Path] = []
    for index, fields in enumerate(messages):
        if fields.get("tool_call_id"):
            paths.append(("messages", index, "tool_call_id"))
        for number, call in enumerate(fields.get("tool_calls") or ()):
            if call.get("id"):
                paths.append(("messages", index, "tool_calls", number, "id"))
    lost = Lost("call_ids_not_rendered", "ids of tool calls", None, None, is_trained=False)
    return [_Part(lost, tuple(paths), _replaced, _replaced, is_marked_alone=True)] if paths else []


def _text_parts(message: Message, index: int) -> list[_Part]:
    path: Path = ("messages", index, "content")
    thought, end, answer = message.content.rpartition(THINK_END)
    parts = []
    if thought.replace("<think>", "").strip():
        lost = Lost("reasoning_not_rendered", "reasoning", message.role, index, message.trained)
        parts.append(
            _Part(
                lost,
                (path,),
                lambda text, word: f" {word}{THINK_END}".join(text.rsplit(THINK_END, 1)),
                lambda text, word: f"<think>\n{word}\n{THINK_END}{text.rpartition(THINK_END)[2]}",
            )
        )
    if answer.strip():
        lost = Lost("content_not_rendered", "text", message.role, index, message.trained)
        parts.append(_Part(lost, (path,), _appended, lambda _, word: f"{thought}{end}{word}"))
    return parts


def _call_parts(call: Mapping[str, Any], at: Path, message: Message, index: int) -> list[_Part]:
    role, trained = message.role, message.trained
    function, inner = (call["function"], (*at, "function")) if isinstance(call.get("function"), dict) else (call, at)
    parts = []
    if isinstance(function.get("name"), str):
        lost = Lost("tool_calls_not_rendered", "names of the tool calls", role, index, trained)
        parts.append(_Part(lost, ((*inner, "name"),), _joined, _replaced))
    if arguments := function.get("arguments"):
        lost = Lost("tool_calls_not_rendered", "arguments of the tool calls", role, index, trained)
        added = _with_entry if isinstance(arguments, dict) else _appended
        other = _entry_only if isinstance(arguments, dict) else _replaced
        parts.append(_Part(lost, ((*inner, "arguments"),), added, other))
    return parts


def _tool_parts(tools: Sequence[Mapping[str, Any]]) -> list[_Part]:
    parts: list[_Part] = []
    for number, tool in enumerate(tools):
        at: Path = ("tools", number)
        function, inner = (
            (tool["function"], (*at, "function")) if isinstance(tool.get("function"), dict) else (tool, at)
        )
        for name, part in (("name", "names of the tools"), ("description", "descriptions of the tools")):
            if isinstance(function.get(name), str) and function[name]:
                lost = Lost("tools_not_rendered", part, None, None, is_trained=False)
                parts.append(_Part(lost, ((*inner, name),), _joined if name == "name" else _appended, _replaced))
        parameters = function.get("parameters")
        if isinstance(parameters, dict) and isinstance(parameters.get("properties"), dict) and parameters["properties"]:
            lost = Lost("tools_not_rendered", "parameters of the tools", None, None, is_trained=False)
            path: Path = (*inner, "parameters", "properties")
            parts.append(_Part(lost, (path,), _with_property, _property_only))
    return parts


def _appended(text: str, word: str) -> str:
    return f"{text} {word}"


def _joined(text: str, word: str) -> str:
    return f"{text}_{word}"


def _replaced(_: object, word: str) -> str:
    return f"{word:0<9}" if word else ""  # as ids of calls: nine letters and digits


def _with_entry(mapping: Mapping[str, Any], word: str) -> dict[str, Any]:
    return {**mapping, word: word}


def _entry_only(_: object, word: str) -> dict[str, Any]:
    return {word: word} if word else {}


def _with_property(mapping: Mapping[str, Any], word: str) -> dict[str, Any]:
    return {**mapping, word: {"type": "string", "description": word}}


def _property_only(_: object, word: str) -> dict[str, Any]:
    return _with_property({}, word) if word else {}
