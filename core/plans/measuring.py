"""What planning reads off a stored file: its tokens under a model, and what it shares with another file.

Both take a pass over the file, so they are remembered: a stored file never changes. So is which template a model's rows
are rendered with: reading a large vocabulary takes longer than planning. A model's files may be replaced while the
service runs, so when they were written is part of what is asked.
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

SmallFiles = tuple[tuple[str, int], ...]  # a model's small files, each with its time in nanoseconds


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
    store: Any = runtime.store  # hashed by identity, which its protocol does not say
    tokenizer, files, mapping = base_model.directory, _small_files(base_model.directory), _frozen(data_format)
    name = _template_name(tokenizer, files, mapping, chat_template)
    return _measured(store, file.storage_key, tokenizer, files, mapping, name, max_length)


def _small_files(directory: Path) -> SmallFiles:
    paths = sorted(path for pattern in ("*.json", "*.jinja") for path in directory.glob(pattern))
    return tuple((path.name, path.stat().st_mtime_ns) for path in paths)


@lru_cache(maxsize=128)
def _template_name(tokenizer: Path, _files: SmallFiles, data_format: bytes, asked: str | None) -> str | None:
    return resolve_template(tokenizer, from_plain(DataFormat, orjson.loads(data_format)), asked)


@lru_cache(maxsize=128)
def _measured(
    store: ArtifactStore,
    storage_key: str,
    tokenizer: Path,
    _files: SmallFiles,
    data_format: bytes,
    chat_template: str | None,
    max_length: int | None,
) -> TokenInspection:
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
