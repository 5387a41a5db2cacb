"""Which characters of a rendered conversation the assistant wrote.

Templates with `{% generation %}` tags say so. For all others the conversation is rendered up to each assistant turn
with an open prompt, and once more with the turn: what lies between is the turn. The result is proven against the
message's own text; where a template rewrites earlier turns the turn is found by rendering it with a stand-in for its
text; what still cannot be proven is refused, because a wrong mask shows only in the finished model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.datasets.examples import Example, Message
from core.datasets.formats import RowError
from core.datasets.templates import ChatTemplate, TemplateRejectedError, template_message

__all__ = ["Rendering", "SpecialTokens", "probe_template", "render_example"]

_STAND_IN = "tunewrightstandin7f3a"
_THINK_END = "</think>"
_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True)
class Rendering:
    """A conversation as text, and the character spans that are trained, ascending and apart from each other.

    `append_eos`: the template does not end the last turn, so a trained end-of-sequence token must follow the text.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    append_eos: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    """The tokenizer's special tokens, longest first, and those of them that end an assistant's turn."""

    all: tuple[str, ...]
    ends: frozenset[str]

    def at(self, text: str, position: int) -> str | None:
        """The special token that begins at `position`."""
        if not text.startswith(self.all, position):
            return None
        return next(token for token in self.all if text.startswith(token, position))

    def before(self, text: str, end: int) -> str | None:
        """The special token that ends at `end`."""
        if not text.endswith(self.all, 0, end):
            return None
        return next(token for token in self.all if text.endswith(token, 0, end))


def probe_template(template: ChatTemplate, special: SpecialTokens) -> tuple[str, str | None]:
    """What the template writes around an answer: the header it does not give as a generation prompt, which is ""
    for all but a few old templates, and the special token after the answer, if any."""
    user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _STAND_IN}
    try:
        prompt = template.render([user], prompt=True)
        before, _, after = template.render([user, assistant]).partition(_STAND_IN)
    except TemplateRejectedError:
        return "", None
    end_of_turn = special.at(after, _skip_blanks(after, 0))
    header = before.removeprefix(prompt) if not template.has_generation_prompt and before.startswith(prompt) else ""
    return (header.rstrip(" ") if header.strip() else ""), end_of_turn


def render_example(template: ChatTemplate, example: Example, special: SpecialTokens) -> Rendering:
    """Render `example` and find its trained spans.

    A span runs from where the assistant begins to write to the end of its end-of-turn token.
    Raises RowError where the template rejects the conversation or the spans cannot be proven.
    """
    payload = [template_message(message) for message in example.messages]
    conversation = _Conversation(template, example.messages, payload, example.tools, special)
    try:
        return conversation.render()
    except TemplateRejectedError as error:
        raise RowError(
            example.row,
            f"the model's chat template rejects this conversation: {error}.",
            "messages",
            "Change the roles and their order to what the model expects, or choose another model.",
            code="template_rejected",
        ) from error
    except _UnprovenError as error:
        raise RowError(
            example.row,
            f"the model's chat template rewrites assistant turn {error.turn}, so what would be trained is unclear.",
            f"messages[{error.index}]",
            'Give that turn "weight": 0, split the conversation so that it ends there, or choose another model.',
            code="template_not_supported",
        ) from error


class _UnprovenError(Exception):
    """Raised when a turn's span cannot be proven. `turn` counts assistant turns from 1."""

    def __init__(self, index: int, turn: int) -> None:
        super().__init__(index, turn)
        self.index, self.turn = index, turn


@dataclass(frozen=True)
class _Turn:
    start: int
    end: int
    is_closed: bool  # ends with a special token


@dataclass(frozen=True)
class _Conversation:
    template: ChatTemplate
    messages: tuple[Message, ...]
    payload: list[dict[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    special: SpecialTokens

    def render(self) -> Rendering:
        text = self.template.render(self.payload, self.tools)
        assistants = [i for i, message in enumerate(self.messages) if message.role == "assistant"]
        trained = [i for i in assistants if self.messages[i].trained]
        if not trained:
            return Rendering(text, ())
        turns: list[_Turn] = []
        if self.template.has_generation_markers:
            turns = self._marked_turns(text, assistants, trained)
        if not turns:
            turns = self._proven_turns(text, assistants, trained)
        ends_open = self._is_last(trained[-1]) and not turns[-1].is_closed
        return Rendering(text, tuple((turn.start, turn.end) for turn in turns), append_eos=ends_open)

    def _is_last(self, index: int) -> bool:
        return index == len(self.messages) - 1

    def _marked_turns(self, text: str, assistants: list[int], trained: list[int]) -> list[_Turn]:
        """Turns from generation tags. Empty where the template has them but did not reach them."""
        spans = self.template.generation_spans(self.payload, self.tools, text)
        if spans and len(spans) == len(assistants):
            spans = [span for span, index in zip(spans, assistants, strict=True) if index in trained]
        elif spans and trained != assistants:
            raise _UnprovenError(assistants[0], 1)
        turns = []
        for number, (start, end) in enumerate(spans, start=1):
            is_last = number == len(spans) and self._is_last(trained[-1])
            if self.special.before(text, start + len(text[start:end].rstrip())):
                turns.append(_Turn(start, end, is_closed=True))
            else:
                turns.append(self._close(text, start, end, end, is_last=is_last))
        return turns

    def _proven_turns(self, text: str, assistants: list[int], trained: list[int]) -> list[_Turn]:
        turns: list[_Turn] = []
        for number, index in enumerate(assistants, start=1):
            if index not in trained:
                continue
            turn = self._locate(text, index)
            if turn is None or (turns and turn.start < turns[-1].end):
                raise _UnprovenError(index, number)
            turns.append(turn)
        return turns

    def _locate(self, text: str, index: int) -> _Turn | None:
        is_last = self._is_last(index)
        opening = self._prefix_length(text, index, prompt=True)
        closing = len(text) if is_last else self._prefix_length(text, index + 1, prompt=False)
        if self.messages[index].extra.get("tool_calls"):
            return self._locate_tool_calls(text, opening, closing)
        content = self._content_at_end(text, index, opening, closing) or self._content_by_stand_in(text, index)
        if content is None:
            return None
        start, content_end = content
        if opening is not None and opening <= start:
            # Without a generation prompt a header before the answer is part of the prompt; else it is generated. The
            # space behind a header belongs to the answer's first token.
            is_written = self.template.has_generation_prompt or not text[opening:start].strip()
            start = opening if is_written else opening + len(text[opening:start].rstrip(" "))
        if closing is None and self.special.at(text, _skip_blanks(text, content_end)) not in self.special.ends:
            return None
        return self._close(text, start, content_end, closing or content_end, is_last=is_last)

    def _prefix_length(self, text: str, count: int, *, prompt: bool) -> int | None:
        """Length of the rendering of the first `count` messages where that is how `text` begins."""
        try:
            prefix = self.template.render(self.payload[:count], self.tools, prompt=prompt)
        except TemplateRejectedError:
            return None
        return len(prefix) if text.startswith(prefix) else None

    def _content_at_end(
        self, text: str, index: int, opening: int | None, closing: int | None
    ) -> tuple[int, int] | None:
        """The message's text where the turn, without its closing special tokens and blanks, ends with it."""
        if opening is None or closing is None:
            return None
        end = opening + len(text[opening:closing].rstrip())
        while (token := self.special.before(text, end)) and end - len(token) >= opening:
            end = opening + len(text[opening : end - len(token)].rstrip())
        visible = _visible(self.messages[index].content)
        start = end - len(visible)
        return (start, end) if start >= opening and text.startswith(visible, start) else None

    def _content_by_stand_in(self, text: str, index: int) -> tuple[int, int] | None:
        """The message's text, found by what changes when another text stands in its place."""
        content = self.messages[index].content
        visible = _visible(content)
        if not visible:
            return None
        thinking = content[: content.rfind(visible)] if _THINK_END in content else ""
        payload = list(self.payload)
        payload[index] = {**payload[index], "content": thinking + _STAND_IN}
        try:
            before, found, after = self.template.render(payload, self.tools).partition(_STAND_IN)
        except TemplateRejectedError:
            return None
        start, end = len(before), len(text) - len(after)
        if not found or not text.startswith(before) or not text.endswith(after) or text[start:end].strip() != visible:
            return None
        return start, end

    def _locate_tool_calls(self, text: str, opening: int | None, closing: int | None) -> _Turn | None:
        """A turn that calls tools has no text of its own to prove it by, so both of its ends must be certain."""
        if opening is None or closing is None:
            return None
        end = opening + len(text[opening:closing].rstrip())
        return _Turn(opening, end, is_closed=self.special.before(text, end) is not None)

    def _close(self, text: str, start: int, content_end: int, closing: int, *, is_last: bool) -> _Turn:
        """The turn from `start` through the token that ends it: one inside the turn, or a known end behind it."""
        at = _skip_blanks(text, content_end)
        token = self.special.at(text, at)
        if token and (at + len(token) <= closing or token in self.special.ends):
            return _Turn(start, at + len(token), is_closed=True)
        if is_last:
            return _Turn(start, len(text), is_closed=False)
        return _Turn(start, content_end + len(text[content_end:closing].rstrip()), is_closed=False)


def _visible(content: str) -> str:
    """The answer itself: templates of reasoning models may drop the thinking before it."""
    return content.rpartition(_THINK_END)[2].strip()


def _skip_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position
