"""What rows hold that a template or a tokenizer will read otherwise than it was meant."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from core.datasets.examples import Example, Message, RowNote
from core.datasets.notices import Notice

__all__ = ["ContentWatch", "NoticeBoard"]

ALREADY_RENDERED = "already_rendered"
# How templates in use open a turn. A message that begins like that was rendered before it came here.
_TURN = re.compile(
    r"\s*+(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>)?\s*+"
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start_of_role\|>|<\|START_OF_TURN_TOKEN\|>|<\|turn>"
    r"|\[INST\]|\[SYSTEM_PROMPT\]|<<SYS>>|<\|(?:system|user|assistant)\|>|<｜(?:User|Assistant)｜>"
    r"|<\|start\|>(?:system|developer|user|assistant))"
)
# How a prompt ends that was written for a model without a template.
_ANSWER_TO_COME = (
    "Assistant:",
    "ASSISTANT:",
    "### Response:",
    "### Assistant:",
    "### Answer:",
    "<|assistant|>",
    "[/INST]",
)


class NoticeBoard:
    """Counts notes of rows: one notice for each sentence."""

    def __init__(self) -> None:
        self._found: dict[RowNote, Notice] = {}

    def add(self, note: RowNote, row: int, count: int = 1) -> None:
        """Note `count` rows, of which `row` is the first."""
        known = self._found.get(note)
        rows, first = (known.rows, known.first_row) if known else (0, None)
        first = row if first is None else min(first, row)
        self._found[note] = Notice(note.code, note.message, rows + count, first)

    def notices(self) -> tuple[Notice, ...]:
        """All that was noted."""
        return tuple(self._found.values())


class ContentWatch:
    """Looks into the messages of rows that a template will render."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        tokens = [re.escape(token) for token in special_tokens]
        self._special = re.compile("|".join(tokens)) if tokens else None

    def notes(self, example: Example) -> Iterator[RowNote]:
        """What is worth saying about this row."""
        if any(code == ALREADY_RENDERED for code, _ in example.notices):
            pass  # said where rows are read
        elif any(_is_rendered(message) for message in example.messages):
            yield RowNote(
                ALREADY_RENDERED,
                "A message begins or ends with the marks of a chat template: it was rendered already and is rendered "
                "again. Give the plain text of each turn.",
            )
        elif token := self._control_token(example):
            yield RowNote(
                "control_tokens_in_content",
                f"A message holds {token!r}, which the tokenizer reads as its control token, not as text: "
                "it can end a turn. Take it out unless that is meant.",
            )
        arguments = (one for message in example.messages if message.extra for one in _arguments(message.extra))
        yield from dict.fromkeys(note for one in arguments if (note := _arguments_note(one)))

    def _control_token(self, example: Example) -> str | None:
        if self._special is None:
            return None
        for message in example.messages:
            if found := self._special.search(message.content):
                return found.group()
        return None


def _is_rendered(message: Message) -> bool:
    if _TURN.match(message.content):
        return True
    said = message.content.rstrip()
    return message.role == "user" and said.endswith(_ANSWER_TO_COME) and "\n" in said


def _arguments(extra: Mapping[str, Any]) -> Iterator[object]:
    for call in extra.get("tool_calls") or ():
        inner = call.get("function", call)
        yield inner.get("arguments") if isinstance(inner, dict) else None


def _arguments_note(arguments: object) -> RowNote | None:
    """Arguments that could be read are an object by now."""
    if not isinstance(arguments, str) or not arguments.strip():
        return None
    try:
        inner = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return RowNote(
            "arguments_not_json", "The arguments of a tool call are not JSON and are trained as the text they are."
        )
    if isinstance(inner, str):
        return RowNote(
            "arguments_encoded_twice",
            "The arguments of a tool call are JSON inside JSON text: the model would learn to write a string. "
            "Encode them once.",
        )
    return None
