"""What planning reads: the base model, a stored file's tokens under it, and what the file shares with another.

The latter two take a pass over the file, by a limited child, so they are remembered: a stored file never changes. A
model's files may be replaced while the service runs, so when they were written is part of what is asked.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import orjson

from core.accounts import hub_tokens
from core.accounts.service import Actor
from core.datasets import in_child
from core.datasets.examples import DataFormat
from core.datasets.inspecting import unreadable
from core.datasets.inspection import Overlap, TokenInspection
from core.datasets.models import StoredFile
from core.datasets.rendering import TOO_DEMANDING
from core.datasets.tokenizer_files import MORE_TEMPLATES
from core.db.serialization import deserialize, serialize
from core.errors import InvalidDatasetError
from core.limited import ChildDiedError, LimitExceededError, Refusals
from core.registry.base_models import BaseModel, find_base_model
from core.runtime import Runtime
from core.scratch import scratch_directory

REMEMBERED = 128
Found = TypeVar("Found")


class _Remembered(Generic[Found]):
    """The newest answers. Safe to use from many threads."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Hashable, Found] = OrderedDict()
        self._lock = Lock()

    def get(self, runtime: Runtime, owner: str, key: Hashable, find: Callable[[], Found]) -> Found:
        """The answer, found now if it is not known: in turns, so that no organization keeps the others waiting.

        Raises RateLimitError where too many wait for theirs.
        """
        known = self._known(key)
        if known is not None:
            return known
        with runtime.children.turns.turn(owner):
            answer = self._known(key) or find()  # by whoever had the turn before, perhaps
        with self._lock:
            self._answers[key] = answer
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return answer

    def _known(self, key: Hashable) -> Found | None:
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
            return self._answers.get(key)


_TOKENS = _Remembered[TokenInspection]()
_OVERLAPS = _Remembered[Overlap]()
_TOO_DEMANDING = Refusals(TOO_DEMANDING)


def base_model_of(runtime: Runtime, actor: Actor, model_id: str, *, may_fetch: bool = True) -> BaseModel:
    """The base model, as the caller's organization may read it. Raises what `find_base_model` raises."""
    with runtime.database.read() as session:
        access = hub_tokens.access_of(session, runtime.settings, actor.organization_id)
    return find_base_model(runtime.settings.resolved_models_dir, model_id, access, may_fetch=may_fetch)


def measure(
    runtime: Runtime,
    base_model: BaseModel,
    file: StoredFile,
    data_format: DataFormat,
    chat_template: str | None,
    max_length: int | None = None,
) -> TokenInspection:
    """Token counts of a file under a base model, with its own chat template or the one that suits the rows.

    Raises InvalidRequestError for a template that the model cannot read, InvalidDatasetError, and RateLimitError where
    too many files are read at once.
    """
    model = base_model.directory, _small_files(base_model.directory)

    def find() -> TokenInspection:
        with _explained(), scratch_directory() as directory:
            path = runtime.store.materialize(file.storage_key, directory)
            arguments = (path, serialize(data_format), *model, chat_template, max_length)
            return deserialize(TokenInspection, runtime.children.call(in_child.measure, *arguments))

    rendered = (file.storage_key, _frozen(data_format), model, chat_template)  # before anything is cut at max_length
    with _TOO_DEMANDING.remembered(rendered):
        return _TOKENS.get(runtime, file.organization_id, (*rendered, max_length), find)


def overlapping_rows(
    runtime: Runtime, training: StoredFile, validation: StoredFile, data_format: DataFormat, held_out_format: DataFormat
) -> Overlap:
    """Rows of the validation file that are in the training file too, each file read in its own format.

    Raises InvalidDatasetError, and RateLimitError where too many files are read at once.
    """

    def find() -> Overlap:
        with _explained(), scratch_directory() as directory:
            paths = [
                runtime.store.materialize(file.storage_key, directory / name)
                for name, file in (("training", training), ("validation", validation))
            ]
            arguments = (paths[0], serialize(data_format), paths[1], serialize(held_out_format))
            return deserialize(Overlap, runtime.children.call(in_child.overlap, *arguments))

    key = (training.storage_key, _frozen(data_format), validation.storage_key, _frozen(held_out_format))
    return _OVERLAPS.get(runtime, training.organization_id, key, find)


def _small_files(directory: Path) -> tuple[tuple[str, int], ...]:
    """A model's small files, each with its time in nanoseconds."""
    paths = sorted(
        path for pattern in ("*.json", "*.jinja", f"{MORE_TEMPLATES}/*.jinja") for path in directory.glob(pattern)
    )
    return tuple((path.name, path.stat().st_mtime_ns) for path in paths)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (LimitExceededError, ChildDiedError) as error:
        raise InvalidDatasetError(unreadable(error)) from None


def _frozen(data_format: DataFormat) -> bytes:
    return orjson.dumps(serialize(data_format), option=orjson.OPT_SORT_KEYS)
