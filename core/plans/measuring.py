"""What planning reads off a stored file: its tokens under a model, and what it shares with another file.

Both take a pass over the file, so they are remembered: a stored file never changes.
"""

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from core.artifacts.store import ArtifactStore
from core.datasets.encoding import load_encoder, resolve_template
from core.datasets.examples import DataFormat
from core.datasets.inspection import Overlap, TokenInspection, measure_tokens, overlap
from core.datasets.models import StoredFile
from core.datasets.reading import read_examples
from core.db.plain import from_plain, to_plain
from core.registry.base_models import BaseModel
from core.runtime import Runtime


def measure(
    runtime: Runtime,
    base_model: BaseModel,
    file: StoredFile,
    data_format: DataFormat,
    chat_template: str | None,
    max_length: int | None = None,
) -> TokenInspection:
    """Token counts of a file under a base model, with its own chat template or the one that suits the rows.

    Raises InvalidRequestError for a template that the model cannot read, and InvalidDatasetError.
    """
    name = resolve_template(base_model.directory, data_format, chat_template)
    store: Any = runtime.store  # hashed by identity, which its protocol does not say
    return _measured(store, file.storage_key, base_model.directory, _frozen(data_format), name, max_length)


@lru_cache(maxsize=128)
def _measured(
    store: ArtifactStore,
    storage_key: str,
    tokenizer: Path,
    data_format: bytes,
    chat_template: str | None,
    max_length: int | None,
) -> TokenInspection:
    """Token counts of one stored file under one tokenizer; a stored file never changes, so they never go stale."""
    with tempfile.TemporaryDirectory(prefix="tunewright-") as directory:
        path = store.materialize(storage_key, Path(directory))
        mapping = from_plain(DataFormat, orjson.loads(data_format))
        return measure_tokens(path, mapping, load_encoder(tokenizer, chat_template), max_length=max_length)


def overlapping_rows(
    runtime: Runtime, training: StoredFile, validation: StoredFile, data_format: DataFormat, held_out_format: DataFormat
) -> Overlap:
    """Rows of the validation file that are in the training file too, each file read in its own format."""
    store: Any = runtime.store  # hashed by identity, which its protocol does not say
    return _overlapping(
        store, training.storage_key, _frozen(data_format), validation.storage_key, _frozen(held_out_format)
    )


@lru_cache(maxsize=128)
def _overlapping(
    store: ArtifactStore, training_key: str, training_format: bytes, validation_key: str, validation_format: bytes
) -> Overlap:
    with tempfile.TemporaryDirectory(prefix="tunewright-") as directory:
        rows = []
        for name, key, plain in (
            ("training", training_key, training_format),
            ("validation", validation_key, validation_format),
        ):
            (Path(directory) / name).mkdir()
            path = store.materialize(key, Path(directory) / name)
            rows.append(read_examples(path, from_plain(DataFormat, orjson.loads(plain))))
        return overlap(*rows)


def _frozen(data_format: DataFormat) -> bytes:
    return orjson.dumps(to_plain(data_format), option=orjson.OPT_SORT_KEYS)
