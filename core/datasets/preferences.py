"""Preference pairs: the chosen answer is what supervised fine-tuning trains; the rejected one is read and left out.

The shapes in use: a prompt, as text or messages, with two answers, as texts or messages; two whole conversations that
part at the last answers; the same as text with `Human:` and `Assistant:` in front of turns; OpenAI's `input` with two
outputs; LLaMA-Factory's conversations with two answers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.datasets.columns import column_of, shortened
from core.datasets.conversations import read_history, read_messages, turns_in, untrained
from core.datasets.examples import DataFormat, DataKind, Message
from core.datasets.pairs import read_prompt
from core.datasets.row_errors import RowError
from core.datasets.values import is_blank, missing_value, read_text

__all__ = ["PREFERENCE", "beside_prompt", "detect_preferences", "preferred_messages"]

PREFERENCE = "preference"
_PAIRS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_messages", "rejected_messages"),
    ("chosen_response", "rejected_response"),
)
# Where the prompt is, most specific first.
_PROMPTS = ("prompt", "messages", "conversations", "question", "instruction", "query", "context", "input")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def detect_preferences(rows: Sequence[Mapping[str, Any]], by_name: Mapping[str, str]) -> DataFormat | None:
    """The format of preference pairs, where the columns hold any."""
    for chosen, rejected in _PAIRS:
        if chosen in by_name and rejected in by_name:
            columns = {"chosen": by_name[chosen], "rejected": by_name[rejected]}
            filled = (
                by_name[name] for name in _PROMPTS if name in by_name and _is_filled(rows, by_name[name])
            )  # fmt: skip
            prompt = next(filled, None)
            return DataFormat(PREFERENCE, DataKind.CHAT, {**columns, **({"prompt": prompt} if prompt else {})})
    return None


def _is_filled(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return any(row.get(column) not in (None, "", []) for row in rows)


def preferred_messages(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with the chosen answer, which alone is trained, after the whole prompt. Raises RowError."""
    chosen = _turns(row, number, columns.get("chosen", "chosen"))
    rejected = _turns(row, number, columns.get("rejected", "rejected"))
    shared = 0  # messages that both begin with: the prompt, where the two are whole conversations
    while shared < min(len(chosen), len(rejected)) - 1 and _same(chosen[shared], rejected[shared]):
        shared += 1
    answered = (*untrained(chosen[:shared]), *chosen[shared:])
    prompt = _prompt(row, number, columns)
    if len(answered) == 1 and isinstance(asked := row.get(columns.get("prompt", "")), str) and _spoken(asked):
        answered = (replace(answered[0], content=answered[0].content.strip()),)  # as the turns before it
    if not any(message.role == "user" for message in (*prompt, *answered)):
        raise RowError(number, "there is no prompt before the chosen answer.", columns.get("prompt"), "Add `prompt`.")
    return _joined(prompt, answered, number, columns.get("prompt"))


def beside_prompt(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """What an object of `messages` that is the prompt holds beside them: tools, in OpenAI's pairs."""
    value = row.get(columns.get("prompt") or "")
    if not isinstance(value, Mapping) or "messages" not in value:
        return {}
    return {name: held for name, held in value.items() if name != "messages" and held not in (None, "", [], {})}


def _prompt(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> tuple[Message, ...]:
    column = columns.get("prompt") or None
    if column is None:
        return ()
    value = row.get(column)
    if isinstance(value, str) and is_blank(value):
        return untrained(read_prompt(row, number, columns, None))
    turns = turns_in(value, number, column)
    if turns is not None:
        history = column_of(row, columns, "history")
        earlier = read_history(row.get(history), number, history) if history else ()
        return (*untrained(earlier), *untrained(read_messages(turns, number, column)))
    if isinstance(value, str) and (said := _spoken(value)):
        return untrained(said)
    return untrained(read_prompt(row, number, columns, column))


def _joined(
    prompt: tuple[Message, ...], answered: tuple[Message, ...], number: int, column: str | None
) -> tuple[Message, ...]:
    """The prompt and what follows it. Turns that both hold, where the answer is a whole conversation, come once."""
    for both in range(min(len(prompt), len(answered)), 0, -1):
        if all(map(_same, prompt[-both:], answered[:both])):
            return (*prompt[:-both], *answered)
    if not prompt or not any(message.role == "user" for message in answered):
        return (*prompt, *answered)
    problem = f"the chosen conversation does not begin with the prompt in {shortened(column)}."
    raise RowError(number, problem, column, 'Make them agree, or map `prompt` to "".')


def _same(one: Message, other: Message) -> bool:
    return one.role == other.role and one.content.strip() == other.content.strip() and one.extra == other.extra


def _turns(row: Mapping[str, Any], number: int, column: str) -> tuple[Message, ...]:
    """The messages in a column; a plain text is the assistant's."""
    value = row.get(column)
    turns = turns_in(value, number, column)
    if turns is not None:
        return read_messages(turns, number, column)
    if value is None:
        raise missing_value(row, number, column, "an answer, as text or as messages")
    text = read_text(row, number, column)
    said = _spoken(text)
    return said or (Message("assistant", text, trained=not is_blank(text)),)


def _spoken(text: str) -> tuple[Message, ...]:
    """The turns of a text with `Human:` and `Assistant:` in front of them; none where it is not such a text."""
    spoken = _SPOKEN.split(text)
    if len(spoken) == 1 or not is_blank(spoken[0]):
        return ()
    pairs = [(_SPEAKERS[speaker], said.strip()) for speaker, said in zip(spoken[1::2], spoken[2::2], strict=True)]
    return tuple(Message(role, said, trained=role == "assistant") for role, said in pairs if said)
