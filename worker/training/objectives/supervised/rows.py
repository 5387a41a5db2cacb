"""The rows of a run: read, encoded as they were shown at inspection, and split into trained and held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.datasets.encoding import Encoder
from core.datasets.examples import EncodedExample, Example
from core.datasets.reading import read_examples
from core.errors import InvalidDatasetError
from planner.constants import MOST_HELD_OUT
from worker.protocol import RunRequest
from worker.training.data.tokenized import TokenizedSet


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is judged by."""

    training: TokenizedSet
    held_out: TokenizedSet
    held_out_examples: tuple[Example, ...]
    notes: tuple[str, ...]  # what was cut or left out, in sentences


def load_data(request: RunRequest, encoder: Encoder) -> RunData:
    """Read and encode the files of the request.

    Without a validation file `held_out_rows` of the training rows are held out. Which ones is a function of the file's
    bytes alone, so that the losses of runs on it compare. Raises InvalidDatasetError where a row is broken or nothing
    would be trained.
    """
    max_length = request.setup.max_length
    rows = _read(Path(request.training_path), request, encoder)
    if request.validation_path is None:
        training, held_out = rows.split(min(request.hyperparameters.held_out_rows, len(rows.numbers) - 1))
    else:
        training = rows
        _, held_out = _read(Path(request.validation_path), request, encoder).split(MOST_HELD_OUT)
    if not training.encoded and held_out.encoded and request.validation_path is None:
        raise InvalidDatasetError(
            f"Every row with a trained token within the first {max_length} tokens is held out. Raise max_length, or "
            "hold fewer rows out with validation_split.",
            code="nothing_to_train",
            param="validation_split",
        )
    if not training.encoded:
        raise InvalidDatasetError(
            f"No row of the training file has a trained token within the first {max_length} tokens. Raise max_length "
            "or put the assistant's turns earlier.",
            code="nothing_to_train",
            param="training_file",
        )
    return RunData(
        training=TokenizedSet.of(training.encoded),
        held_out=TokenizedSet.of(held_out.encoded),
        held_out_examples=tuple(held_out.examples),
        notes=rows.notes,
    )


@dataclass(frozen=True)
class _Rows:
    """The rows of one file that train something, and what the file is."""

    examples: Sequence[Example]
    encoded: Sequence[EncodedExample]
    sha256: bytes  # of the file
    numbers: Sequence[int]  # of every row of the file, also of those that train nothing
    notes: tuple[str, ...] = ()

    def split(self, count: int) -> tuple["_Rows", "_Rows"]:
        """The rows without `count` of the file's, and those: drawn by the file's hash, whatever trains of them."""
        held = set(sorted(self.numbers, key=self._place)[:count])
        parts = (
            [index for index, row in enumerate(self.encoded) if (row.row in held) is is_held]
            for is_held in (False, True)
        )
        training, held_out = (
            replace(self, examples=[self.examples[i] for i in part], encoded=[self.encoded[i] for i in part])
            for part in parts
        )
        return training, held_out

    def _place(self, number: int) -> bytes:
        return hashlib.blake2b(number.to_bytes(8), key=self.sha256, digest_size=16).digest()


def _read(path: Path, request: RunRequest, encoder: Encoder) -> _Rows:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").digest()
    everything = list(read_examples(path, request.data_format))
    examples, encoded = [], []
    truncated = cut_tokens = 0
    for example, encoding in zip(everything, encoder.encode_batch(everything, request.setup.max_length), strict=True):
        truncated += encoding.truncated_tokens > 0
        cut_tokens += encoding.truncated_tokens
        if any(encoding.completion_mask[1:]):
            examples.append(example)
            encoded.append(encoding)
    notes = []
    if truncated:
        notes.append(
            f"{truncated} of {len(everything)} rows are longer than {request.setup.max_length} tokens and were cut "
            f"there, {cut_tokens} tokens in all."
        )
    if len(encoded) < len(everything):
        notes.append(f"{len(everything) - len(encoded)} rows have no trained token and were left out.")
    return _Rows(examples, encoded, sha256, [example.row for example in everything], tuple(notes))
