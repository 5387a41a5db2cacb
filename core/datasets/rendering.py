"""Rows rendered with a chat template: what runs in the limited child where the template is a stranger's.

Everything goes in and out as plain data, and many rows go at once: a round trip costs more than most renderings.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from core.datasets.accounting import Lost, lost_parts, row_shape
from core.datasets.examples import Example
from core.datasets.row_errors import RowError
from core.datasets.spans import SpecialTokens, TurnProbe, probe_template, render_example
from core.datasets.templates import ChatTemplate, TemplateRejectedError, TemplateSource
from core.errors import InvalidModelError

__all__ = ["ANSWER_LOST", "TOO_DEMANDING", "RenderTask", "probe", "render_prompt", "render_rows", "too_demanding"]

# Templates add a sentence or two, and escapes multiply a text; more than this is not a rendering of the row.
_ADDED_CHARACTERS = 64 * 1024
_GROWTH = 16
_BATCH_CPU_SECONDS = 120  # for all rows of one call
_REMEMBERED_SHAPES = 4096
ANSWER_LOST = "template_loses_answer"
TOO_DEMANDING = "chat_template_too_demanding"


@dataclass(frozen=True)
class RenderTask:
    """A template and what is known of the tokenizer it goes with."""

    source: TemplateSource
    special: SpecialTokens


@dataclass(frozen=True)
class _Compiled:
    template: ChatTemplate
    special: SpecialTokens
    probe: TurnProbe
    lost: dict[object, tuple[Lost, ...]] = field(default_factory=dict)  # by the shape of rows


def probe(task: RenderTask) -> dict[str, Any]:
    """What the template writes around an answer: the fields of a TurnProbe. Raises InvalidModelError."""
    return vars(_compiled(task, for_tools=False).probe)


def render_rows(task: RenderTask, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """For each example the fields of its Rendering and `lost`, the code and sentence of each part that it lacks.

    Last of all `error` with the fields of the first RowError. Raises InvalidModelError.
    """
    started = time.process_time()
    for example in examples:
        if time.process_time() - started > _BATCH_CPU_SECONDS:
            raise too_demanding(f"{len(examples)} rows need more than {_BATCH_CPU_SECONDS} s of CPU time")
        compiled = _compiled(task, for_tools=bool(example.tools))
        try:
            lost = _lost(compiled, example)
            _check_answers(lost, example, task.source.title)
            rendering = render_example(compiled.template, example, compiled.special, compiled.probe)
        except RowError as error:
            fields = {"problem": error.problem, "param": error.param, "fix": error.fix, "code": error.code}
            yield {"error": {"row": error.row, **fields}}
            return
        _check_length(len(rendering.text), example)
        yield {**vars(rendering), "lost": _sentences(lost, task.source.title)}


def render_prompt(task: RenderTask, messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The `text` after which the model writes its next turn, or why the template rejects the messages: `rejected`."""
    try:
        return {"text": _compiled(task, for_tools=False).template.render(messages, prompt=True)}
    except TemplateRejectedError as error:
        return {"rejected": str(error)}


def too_demanding(why: str) -> InvalidModelError:
    """The error of a template that cannot be rendered within limits."""
    return InvalidModelError(
        f"The model's chat template cannot be rendered: {why}. Choose another model, or name a `chat_template`.",
        code=TOO_DEMANDING,
        param="model",
    )


def _lost(compiled: _Compiled, example: Example) -> tuple[Lost, ...]:
    shape = row_shape(example)
    lost = compiled.lost.get(shape)
    if lost is None:
        try:
            lost = lost_parts(compiled.template, example)
        except TemplateRejectedError:
            return ()  # rendering it says why
        if len(compiled.lost) == _REMEMBERED_SHAPES:
            compiled.lost.clear()
        compiled.lost[shape] = lost
    return lost


def _check_answers(lost: Sequence[Lost], example: Example, title: str) -> None:
    """Raises RowError where the template leaves out what should be learned."""
    for one in lost:
        if one.is_trained:
            raise RowError(
                example.row,
                f"{title} leaves out the {one.part} of messages[{one.index}], which should be trained.",
                f"messages[{one.index}]",
                'Choose a model whose template shows it, or give that message "weight": 0.',
                code=ANSWER_LOST,
            )


def _sentences(lost: Sequence[Lost], title: str) -> list[tuple[str, str]]:
    """The code and the sentence of each kind of loss, once."""
    found: dict[tuple[str, str], None] = {}
    for one in lost:
        whose = f" of {one.role} messages" if one.role else ""
        where = " before the last" if one.code == "reasoning_not_rendered" and one.role == "assistant" else ""
        found[one.code, f"{title[0].upper()}{title[1:]} leaves out the {one.part}{whose}{where}."] = None
    return list(found)


def _check_length(length: int, example: Example) -> None:
    if length <= _ADDED_CHARACTERS:
        return
    written = sum(len(message.content) + len(str(message.extra)) for message in example.messages)
    if length > _ADDED_CHARACTERS + _GROWTH * (written + len(str(example.tools))):
        raise too_demanding(f"it makes {length:,} characters of row {example.row}, which has {written:,}")


def _compiled(task: RenderTask, *, for_tools: bool) -> _Compiled:
    text = task.source.tool_use if for_tools and task.source.tool_use else task.source.text
    return _compile(text, tuple(sorted(task.source.special_tokens.items())), task.special)


@lru_cache(maxsize=16)
def _compile(text: str, special_tokens: tuple[tuple[str, str], ...], special: SpecialTokens) -> _Compiled:
    template = ChatTemplate.compile(text, dict(special_tokens))
    found = probe_template(template, special)
    if found.end_of_turn:
        special = SpecialTokens(special.all, special.ends | {found.end_of_turn})
    return _Compiled(template, special, found)
