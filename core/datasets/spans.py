"""Which characters of a rendered conversation the assistant wrote.

Templates with `{% generation %}` tags say so. For all others the conversation is rendered up to each assistant turn
with an open prompt, and once more with the turn: what lies between is the turn. The result is proven against the
message's own text; where a template rewrites earlier turns the turn is found by rendering it with a stand-in for its
text; what still cannot be proven is refused, because a wrong mask shows only in the finished model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from core.datasets.examples import Example, Message
from core.datasets.formats import RowError
from core.datasets.templates import THINK_END, ChatTemplate, TemplateRejectedError, template_message

__all__ = ["Rendering", "SpecialTokens", "TurnProbe", "probe_template", "render_example"]

_STAND_IN = "tunewrightstandin7f3a"
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


@dataclass(frozen=True)
class TurnProbe:
    """What a template writes around an answer.

    `header` opens an assistant's turn where the generation prompt does not; "" for all but a few old templates.
    `opening` is all between the question's turn and the answer; `lead` are the blanks of it that the model writes.
    `end_of_turn` is the special token after the answer, if any.
    """

    header: str = ""
    opening: str = ""
    lead: str = ""
    end_of_turn: str | None = None


def probe_template(template: ChatTemplate, special: SpecialTokens) -> TurnProbe:
    """Find out by rendering a question and an answer."""
    user, assistant = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": _STAND_IN}
    try:
        asked, prompt = template.render([user]), template.render([user], prompt=True)
        before, _, after = template.render([user, assistant]).partition(_STAND_IN)
    except TemplateRejectedError:
        return TurnProbe()
    between = before.removeprefix(prompt) if before.startswith(prompt) else ""
    return TurnProbe(
        header=between.rstrip(" ") if between.strip() and not template.has_generation_prompt else "",
        opening=before.removeprefix(asked).rstrip(" ") if before.startswith(asked) else "",
        lead="" if between.strip() else between,
        end_of_turn=special.at(after, _skip_blanks(after, 0)),
    )


def render_example(template: ChatTemplate, example: Example, special: SpecialTokens, probe: TurnProbe) -> Rendering:
    """Render `example` and find its trained spans. `probe` is the template's.

    A span runs from where the assistant begins to write to the end of its end-of-turn token.
    Raises RowError where the template rejects the conversation or the spans cannot be proven.
    """
    payload = [template_message(message) for message in example.messages]
    conversation = _Conversation(template, example.messages, payload, example.tools, special, probe)
    try:
        return conversation.render()
    except TemplateRejectedError as error:
        if conversation.needs_tools and not template.knows_tools:
            raise RowError(
                example.row,
                "the conversation uses tools, and its chat template knows no tools.",
                "messages",
                "Choose a model whose template renders calls of tools, or write calls and results as text.",
                code="template_knows_no_tools",
            ) from error
        raise RowError(
            example.row,
            f"the model's chat template rejects this conversation: {error}.",
            "messages",
            conversation.advice(),
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
    probe: TurnProbe

    @property
    def needs_tools(self) -> bool:
        """Whether tools are defined, called or answer."""
        return bool(self.tools) or any(m.role == "tool" or m.extra.get("tool_calls") for m in self.messages)

    def advice(self) -> str:
        """What to change in a conversation that the template rejects."""
        if (named := self._call_id()) and self._is_taken(self._with_short_ids()):
            return (
                f"This model takes ids of calls that are nine letters and digits, and {named}: give each call "
                "such an id, and its result the same one as tool_call_id."
            )
        if self.messages[0].role == "system" and self._is_taken(self.payload[1:]):
            return (
                "This model takes no system message: put the text of the system message into the first user message, "
                "or choose another model."
            )
        spoken = [(i, m.role) for i, m in enumerate(self.messages) if m.role != "system"]
        for (_, before), (index, role) in pairwise(spoken):
            if role == before != "tool":
                return (
                    f"messages[{index}] follows another message of the {role}: join the two where the model's roles "
                    "must alternate, or choose another model."
                )
        return "Change the roles and their order to what the model expects, or choose another model."

    def _call_id(self) -> str:
        """The first id of a call and where it stands; "" where there is none."""
        for index, message in enumerate(self.payload):
            for number, call in enumerate(message.get("tool_calls") or ()):
                if "id" in call:
                    return f"messages[{index}].tool_calls[{number}].id is {str(call['id'])[:40]!r}"
                return f"messages[{index}].tool_calls[{number}] has none"
        return ""

    def _with_short_ids(self) -> list[dict[str, Any]]:
        """The messages with ids of nine digits, the same where they were the same."""
        ids: dict[object, str] = {}

        def short(value: object) -> str:
            return ids.setdefault(value, f"{len(ids):09}")

        payload = []
        for message in self.payload:
            changed = dict(message)
            if "tool_calls" in message:
                changed["tool_calls"] = [{**call, "id": short(call.get("id"))} for call in message["tool_calls"]]
            if message["role"] == "tool":
                changed["tool_call_id"] = short(message.get("tool_call_id"))
            payload.append(changed)
        return payload

    def _is_taken(self, payload: list[dict[str, Any]]) -> bool:
        try:
            self.template.render(payload, self.tools)
        except TemplateRejectedError:
            return False
        return True

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
        opening = self._opening(text, index)
        closing = len(text) if is_last else self._prefix_length(text, index + 1, prompt=False)
        if self.messages[index].extra.get("tool_calls"):
            return self._locate_tool_calls(text, index, opening, closing)
        content = self._content_at_end(text, index, opening, closing) or self._content_by_stand_in(text, index)
        if content is None:
            return None
        start, content_end = content
        if opening is not None and opening <= start:
            # Without a generation prompt a header before the answer is part of the prompt; else it is generated. The
            # space behind a header belongs to the answer's first token.
            is_written = self.template.has_generation_prompt or not text[opening:start].strip()
            start = opening if is_written else opening + len(text[opening:start].rstrip(" "))
        elif text.endswith(self.probe.lead, 0, start):
            start -= len(self.probe.lead)
        if closing is None and self.special.at(text, _skip_blanks(text, content_end)) not in self.special.ends:
            return None
        return self._close(text, start, content_end, closing or content_end, is_last=is_last)

    def _opening(self, text: str, index: int) -> int | None:
        """Where the assistant begins to write: behind the generation prompt; where that opens more than the template
        then renders, such as a thought, behind what it renders of every answer's opening."""
        opening = self._prefix_length(text, index, prompt=True)
        if opening is not None:
            return opening
        before = self._prefix_length(text, index, prompt=False)
        if before is None or not text.startswith(self.probe.opening, before):
            return None
        return before + len(self.probe.opening)

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
        thinking = content[: content.rfind(visible)] if THINK_END in content else ""
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

    def _locate_tool_calls(self, text: str, index: int, opening: int | None, closing: int | None) -> _Turn | None:
        """A turn that calls tools: between its ends where both are certain; else around the names that it calls."""
        if opening is not None and closing is not None:
            end = opening + len(text[opening:closing].rstrip())
            return _Turn(opening, end, is_closed=self.special.before(text, end) is not None)
        names = self._names_called(text, index)
        if names is None:
            return None
        first, last = names
        if opening is None:
            opening = self._opening_behind_question(text, index, first)
        ends = [(at, token) for token in self.special.ends if (at := text.find(token, last)) >= 0]
        if opening is None or opening > first or not ends:
            return None
        at, token = min(ends)
        return _Turn(opening, at + len(token), is_closed=True)

    def _names_called(self, text: str, index: int) -> tuple[int, int] | None:
        """From the first to the last name that the turn calls, found by what changes when other names stand there."""
        calls = self.payload[index]["tool_calls"]
        if not all(isinstance(call.get("function"), dict) for call in calls):
            return None
        renamed = [{**call, "function": {**call["function"], "name": _STAND_IN}} for call in calls]
        payload = list(self.payload)
        payload[index] = {**payload[index], "tool_calls": renamed}
        try:
            before, found, rest = self.template.render(payload, self.tools).partition(_STAND_IN)
        except TemplateRejectedError:
            return None
        after = rest.rpartition(_STAND_IN)[2]
        if not found or not text.startswith(before) or not text.endswith(after):
            return None
        return len(before), len(text) - len(after)

    def _opening_behind_question(self, text: str, index: int, limit: int) -> int | None:
        """Behind the last message before the turn and what the generation prompt puts behind it, up to `limit`."""
        question = self.payload[index - 1].get("content") if index else None
        if not question or not isinstance(question, str):
            return None
        try:
            prompt = self.template.render(self.payload[:index], self.tools, prompt=True)
        except TemplateRejectedError:
            return None
        _, found, behind = prompt.rpartition(question)
        tail = question + behind
        at = text.rfind(tail, 0, limit) if found else -1
        return at + len(tail) if at >= 0 else None

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
    return content.rpartition(THINK_END)[2].strip()


def _skip_blanks(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position
