"""Preference pairs: the chosen answer is what supervised fine-tuning trains; the rejected one is read and left out.

The shapes in use: a prompt with two answers, as texts or as messages; two whole conversations that part at the last
answers; the same as text with `Human:` and `Assistant:` in front of turns; OpenAI's `input` with two outputs.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.datasets.conversations import as_turns, is_blank, missing_value, read_messages, read_text
from core.datasets.examples import DataFormat, DataKind, Message

__all__ = ["PREFERENCE", "detect_preferences", "preferred_messages"]

PREFERENCE = "preference"
_PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_PROMPTS = ("prompt", "input", "question", "instruction")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def detect_preferences(by_name: Mapping[str, str]) -> DataFormat | None:
    """The format of preference pairs, where the columns, by their names in small letters, hold any."""
    for chosen, rejected in _PAIRS:
        if chosen in by_name and rejected in by_name:
            columns = {"chosen": by_name[chosen], "rejected": by_name[rejected]}
            prompt = next((by_name[name] for name in _PROMPTS if name in by_name), None)
            return DataFormat(PREFERENCE, DataKind.CHAT, {**columns, **({"prompt": prompt} if prompt else {})})
    return None


def preferred_messages(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with the chosen answer, which alone is trained. Raises RowError."""
    chosen = _turns(row, number, columns.get("chosen", "chosen"))
    rejected = _turns(row, number, columns.get("rejected", "rejected"))
    shared = 0  # messages that both begin with: the prompt, where the two are whole conversations
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    messages = (*(replace(message, trained=False) for message in chosen[:shared]), *chosen[shared:])
    column = columns.get("prompt")
    if column is None or any(message.role == "user" for message in chosen):
        return messages
    return (*(replace(message, trained=False) for message in _turns(row, number, column, "user")), *messages)


def _turns(row: Mapping[str, Any], number: int, column: str, role: str = "assistant") -> tuple[Message, ...]:
    """The messages in a column; a plain text is one of `role`."""
    value = row.get(column)
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    turns = as_turns(value)
    if turns is not None:
        return read_messages(turns, number, column, "role", "content")
    if value is None:
        raise missing_value(row, number, column, "an answer, as text or as messages")
    text = read_text(row, number, column)
    spoken = _SPOKEN.split(text)
    if len(spoken) > 1 and is_blank(spoken[0]):
        pairs = zip(spoken[1::2], spoken[2::2], strict=True)
        return tuple(_message(_SPEAKERS[speaker], said.strip()) for speaker, said in pairs)
    return (_message(role, text),)


def _message(role: str, text: str) -> Message:
    return Message(role, text, trained=role == "assistant" and not is_blank(text))
