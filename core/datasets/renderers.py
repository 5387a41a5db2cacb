"""Where rows are rendered: here with our own templates, in a limited child with anyone else's.

A process keeps its children and gives each to one caller at a time; one that met a limit has been ended, and the next
caller gets a new one.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from threading import BoundedSemaphore
from typing import Any

from core.datasets.examples import Example, RowNote
from core.datasets.named_templates import is_shipped
from core.datasets.rendering import TOO_DEMANDING, RenderTask, probe, render_prompt, render_rows, too_demanding
from core.datasets.row_errors import RowError
from core.datasets.spans import Rendering, SpecialTokens, TurnProbe
from core.datasets.templates import TemplateSource
from core.limited import ChildDiedError, LimitedChild, LimitExceededError, Limits, Refusals

__all__ = ["Renderer"]

# For each row. A conversation of hundreds of turns is rendered anew for each of them and takes a second or two.
_LIMITS = Limits(cpu_seconds=10, wall_seconds=120, memory_bytes=1024**3)
_MOST_CHILDREN = 4  # of one process
_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 8 * 1024**2


class Renderer:
    """A chat template in use. Safe to share between threads.

    All methods raise InvalidModelError: `invalid_chat_template` where it does not compile and
    `chat_template_too_demanding` where it needs more time, memory or room than a template may.
    """

    def __init__(self, source: TemplateSource, special: SpecialTokens) -> None:
        self._task = RenderTask(source, special)
        self._is_shipped = is_shipped(source)
        with _refusals.remembered(_digest(self._task)):
            self.probe = TurnProbe(**self._value(probe))

    def render(self, examples: Iterable[Example]) -> Iterator[tuple[Rendering, tuple[RowNote, ...]]]:
        """The examples as text, in order, and what of each is not in its text.

        Raises RowError at the first that the template rejects, or of which it leaves out what should be trained.
        """
        for batch in _batches(examples):
            failed = None
            for value in self._values(render_rows, batch):
                if "error" in value:
                    failed = RowError(**value["error"])
                    continue
                rendering = Rendering(value["text"], tuple(map(tuple, value["spans"])), value["append_eos"])
                yield rendering, tuple(RowNote(code, message) for code, message in value["lost"])
            if failed:
                raise failed

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """`text`, after which the model writes its next turn, or why there is none: `rejected`."""
        answer: dict[str, str] = self._value(render_prompt, messages)
        return answer

    def _value(self, function: Callable[..., Any], *arguments: object) -> Any:
        if self._is_shipped:
            return function(self._task, *arguments)
        with _children.lend() as child:
            try:
                [value] = child.values(function, self._task, *arguments)
            except (LimitExceededError, ChildDiedError) as error:
                raise too_demanding(str(error)) from error
        return value

    def _values(self, function: Callable[..., Iterator[Any]], batch: Sequence[Example]) -> Iterator[Any]:
        if self._is_shipped:
            yield from function(self._task, batch)
            return
        done = 0
        with _children.lend() as child, closing(child.values(function, self._task, batch)) as values:
            try:
                for value in values:
                    done += 1
                    yield value
            except (LimitExceededError, ChildDiedError) as error:
                row = batch[min(done, len(batch) - 1)].row
                raise too_demanding(f"at row {row} {error}") from error


class _Children:
    """The limited children of this process that render, each lent to one caller at a time."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, as a forked process must: the pipes it has lead to its parent's children."""
        self._idle: list[LimitedChild] = []
        self._places = BoundedSemaphore(_MOST_CHILDREN)

    @contextmanager
    def lend(self) -> Iterator[LimitedChild]:
        """A child that works, waiting for one where all are lent."""
        with self._places:
            child = self._take()
            try:
                yield child
            finally:
                if child.is_usable:
                    self._idle.append(child)

    def _take(self) -> LimitedChild:
        while self._idle:
            child = self._idle.pop()
            if child.is_usable:
                return child
            child.close()
        return LimitedChild(_LIMITS)


_children = _Children()
_refusals = Refusals(TOO_DEMANDING)  # of templates that cannot even be tried, whatever the rows
os.register_at_fork(after_in_child=_children.forget)


def _digest(task: RenderTask) -> bytes:
    source = task.source
    what = (source.text, source.tool_use, sorted(source.special_tokens.items()))
    return hashlib.sha256(repr(what).encode("utf-8", "surrogatepass")).digest()


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    size = 0
    for example in examples:
        batch.append(example)
        size += sum(len(message.content) for message in example.messages)
        if len(batch) == _ROWS_AT_ONCE or size >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
