"""What is done with a stranger's file in a limited child: it is inspected, its tokens are counted, rows are compared.

Arguments and results are plain data.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.datasets import inspection
from core.datasets.encoding import Encoder, load_encoder, resolve_template
from core.datasets.examples import DataFormat
from core.datasets.reading import read_examples
from core.db.serialization import deserialize, serialize

__all__ = ["inspect", "measure", "overlap"]


def inspect(path: Path) -> dict[str, Any]:
    """A plain Inspection of the file. Raises InvalidDatasetError."""
    return serialize(inspection.inspect_file(path))


def measure(
    path: Path,
    data_format: Mapping[str, Any],
    tokenizer: Path,
    files: tuple[tuple[str, int], ...],
    chat_template: str | None,
    max_length: int | None,
) -> dict[str, Any]:
    """A plain TokenInspection of the file. `chat_template`: as asked; None: the model's own, else what suits the rows.

    Raises InvalidDatasetError, InvalidModelError, InvalidRequestError.
    """
    mapping = deserialize(DataFormat, data_format)
    encoder = _encoder(tokenizer, files, resolve_template(tokenizer, mapping, chat_template))
    return serialize(inspection.measure_tokens(path, mapping, encoder, max_length=max_length))


def overlap(
    training: Path, training_format: Mapping[str, Any], validation: Path, validation_format: Mapping[str, Any]
) -> dict[str, Any]:
    """A plain Overlap of the files. Raises InvalidDatasetError."""
    rows = [
        read_examples(path, deserialize(DataFormat, plain))
        for path, plain in ((training, training_format), (validation, validation_format))
    ]
    return serialize(inspection.overlap(*rows))


@lru_cache(maxsize=2)
def _encoder(tokenizer: Path, _files: tuple[tuple[str, int], ...], chat_template: str | None) -> Encoder:
    """Reading a large vocabulary takes longer than most files. `_files`: when the model's were written."""
    return load_encoder(tokenizer, chat_template)
