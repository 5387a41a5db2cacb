"""Chat templates: Jinja programs that come with a model and turn messages into the text it was trained on.

They are someone else's code, so they run in Jinja's sandbox, which bounds neither time nor memory: those of strangers
are compiled and run in a limited child only (`core.datasets.renderers`). The dialect is what transformers gives them:
trimmed blocks, loop controls, `raise_exception`, `strftime_now`, an unescaped `tojson` and the `{% generation %}`
tag, which surrounds what the assistant writes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from core.datasets.examples import Message
from core.datasets.numbers import dump_json
from core.errors import InvalidModelError

__all__ = [
    "REASONING_FIELDS",
    "THINK_END",
    "ChatTemplate",
    "TemplateRejectedError",
    "TemplateSource",
    "template_message",
]

# Unicode noncharacters: no text may contain them, so they can stand in a rendering and be found again.
_SPAN_START, _SPAN_END = "\ufdd0", "\ufdd1"
_SPAN_EDGE = re.compile(f"[{_SPAN_START}{_SPAN_END}]")
_LONGEST_COMPLAINT = 500
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
THINK_END = "</think>"


class TemplateRejectedError(Exception):
    """Raised when a template refuses a conversation, by `raise_exception` or because an expression fails."""


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body, between marks where the environment asks."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_rendered"), [], [], body, lineno=line)

    def _rendered(self, caller: Callable[[], str]) -> str:
        if self.environment.globals["mark_generation"]:
            return f"{_SPAN_START}{caller()}{_SPAN_END}"
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return dump_json(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _compile(source: str, *, mark_generation: bool) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, mark_generation=mark_generation
    )
    return environment.from_string(source)


def template_message(message: Message) -> dict[str, Any]:
    """The message as templates read it. A turn that only calls tools has no `content`, as with transformers."""
    data: dict[str, Any] = {"role": message.role, "content": message.content, **message.extra}
    if not message.content and "tool_calls" in message.extra:
        del data["content"]
    reasoning = next((data[name] for name in REASONING_FIELDS if data.get(name) is not None), None)
    if reasoning is not None:
        data = {"thinking": reasoning, **data, "reasoning_content": reasoning}
    return data


@dataclass(frozen=True)
class TemplateSource:
    """A chat template as it comes with a model, not compiled, and the special tokens it may name (`bos_token`, ...).

    `tool_use`: the template for rows that bring tools, where the model has one of its own for them.
    """

    text: str
    special_tokens: Mapping[str, str]
    tool_use: str | None = None
    name: str | None = None  # of one of ours

    @property
    def title(self) -> str:
        """What a sentence calls it."""
        return f"the chat template {self.name!r}" if self.name else "the model's chat template"


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the special tokens it may name (`bos_token`, `eos_token`, ...)."""

    source: str
    special_tokens: Mapping[str, str]
    _plain: jinja2.Template
    _marked: jinja2.Template

    @classmethod
    def compile(cls, source: str, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        """Compile `source`. Raises InvalidModelError where it is not a template."""
        try:
            plain, marked = (_compile(source, mark_generation=mark) for mark in (False, True))
        except MemoryError:
            raise  # the process's limit, not the template's answer
        except Exception as error:
            where = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InvalidModelError(
                f"The model's chat template does not compile: {_said(error)}{where}. "
                "Correct chat_template in the model's directory.",
                code="invalid_chat_template",
            ) from error
        return cls(source, dict(special_tokens), plain, marked)

    @cached_property
    def has_generation_markers(self) -> bool:
        """Whether the template says itself what the assistant writes."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    @cached_property
    def knows_tools(self) -> bool:
        """Whether the template reads calls or definitions of tools. Our own name them only to refuse them."""
        return "tool" in self.source and "know no tools" not in self.source

    @cached_property
    def has_generation_prompt(self) -> bool:
        """Whether the template can open an assistant turn."""
        return "add_generation_prompt" in self.source

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> str:
        """The conversation as text; with `prompt`, followed by the opening of an assistant turn.

        Raises TemplateRejectedError.
        """
        return self._run(self._plain, messages, tools, prompt)

    def generation_spans(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str
    ) -> list[tuple[int, int]]:
        """Character spans of `text`, its plain rendering, that stand inside generation tags.

        Raises TemplateRejectedError, also where the text itself contains the marks or depends on them.
        """
        marked = self._run(self._marked, messages, tools, False)
        if _SPAN_EDGE.search(text) or _SPAN_EDGE.sub("", marked) != text:
            raise TemplateRejectedError("what stands inside its generation tags cannot be located")
        return list(_pair_spans(marked))

    def _run(
        self,
        template: jinja2.Template,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        prompt: bool,
    ) -> str:
        try:
            text = template.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=prompt,
                **self.special_tokens,
            )
            text.encode()  # half a surrogate pair is no text
        except MemoryError:
            raise  # the process's limit, not the template's answer
        except Exception as error:
            raise TemplateRejectedError(_said(error)) from error
        return text


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_LONGEST_COMPLAINT]


def _pair_spans(marked: str) -> Iterator[tuple[int, int]]:
    """Spans between marks, in the coordinates of the text without them. Nested tags count as the outermost."""
    depth, start = 0, 0
    for removed, edge in enumerate(_SPAN_EDGE.finditer(marked)):
        if edge.group() == _SPAN_START:
            if depth == 0:
                start = edge.start() - removed
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                yield start, edge.start() - removed
