"""One training example in the vocabulary of the trainer, and how a file's columns map to it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class DataKind(StrEnum):
    """What one row means."""

    CHAT = "chat"  # turns; the assistant's are trained
    COMPLETION = "completion"  # a prompt and its completion; the completion is trained
    TEXT = "text"  # raw text; everything is trained


@dataclass(frozen=True)
class DataFormat:
    """How rows of a file become examples. Detected from content, editable by the user.

    `shape` names the layout (`messages`, `prompt_completion`, `alpaca`, `sharegpt`, `question_answer`, `preference`,
    `text`);
    `columns` maps each role of that layout to the column that holds it, e.g. `{"prompt": "question",
    "completion": "answer"}`. The role `reference`, which every layout may have, is what generated answers are compared
    with, and `system`, `input`, `context`, `history` and `label` are what rows may have beside their shape: left out,
    each is read from its usual column, and mapped to "" from none. `skip_broken_rows`: the user has said that rows
    which cannot be used are left out.
    """

    shape: str
    kind: DataKind
    columns: dict[str, str] = field(default_factory=dict)
    skip_broken_rows: bool = False


@dataclass(frozen=True)
class Message:
    """One turn. `trained` is False where the row's `weight` is 0 or the role is not the assistant's."""

    role: str
    content: str
    trained: bool
    extra: dict[str, Any] = field(default_factory=dict)  # tool_calls, name, tool_call_id, as the template expects


@dataclass(frozen=True)
class Example:
    """One row, ready for a chat template or a tokenizer.

    `messages` for chat and completion rows (a completion row becomes a user turn and an assistant turn), `text` for
    raw text. `row` is the 1-based number of the row (the line number for JSON Lines).
    """

    row: int
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    reference: str | None = None  # the value of the column that generated answers are compared with
    notices: tuple[tuple[str, str], ...] = ()  # codes and sentences of what is worth knowing about the row


@dataclass(frozen=True)
class RowNote:
    """Something about one row that is worth a notice: its stable code and its sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class EncodedExample:
    """Token ids and, for each, whether it is trained. `truncated_tokens` counts what `max_length` cut off.

    `notes`: what of the row did not reach its rendering.
    """

    row: int
    input_ids: tuple[int, ...]
    completion_mask: tuple[bool, ...]
    truncated_tokens: int = 0
    notes: tuple[RowNote, ...] = ()
