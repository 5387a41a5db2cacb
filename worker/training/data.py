"""The rows of a run: read, encoded as they were shown at inspection, and split into trained and held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets.encoding import Encoder
from core.datasets.examples import EncodedExample, Example
from core.datasets.reading import read_examples
from core.errors import InvalidDatasetError
from planner.constants import MOST_HELD_OUT
from worker.protocol import RunRequest
from worker.training.batches import TokenizedSet

_HELD_OUT_STREAM = 0x68656C64  # a random stream of its own, apart from those of the epochs


@dataclass(frozen=True)
class RunData:
    """What a run trains on and is judged by."""

    training: TokenizedSet
    held_out: TokenizedSet
    held_out_examples: tuple[Example, ...]
    notes: tuple[str, ...]  # what was cut or left out, in sentences


def load_data(request: RunRequest, encoder: Encoder) -> RunData:
    """Read and encode the files of the request.

    Without a validation file `evaluation_fraction` of the training rows is held out, drawn by the seed. Raises
    InvalidDatasetError where a row is broken or nothing would be trained.
    """
    max_length = request.setup.max_length
    examples, encoded, notes = _read(Path(request.training_path), request, encoder)
    if not encoded:
        raise InvalidDatasetError(
            f"No row of the training file has a trained token within the first {max_length} tokens. Raise max_length "
            "or put the assistant's turns earlier.",
            code="nothing_to_train",
            param="training_file",
        )
    if request.validation_path is not None:
        held_examples, held_encoded, _ = _read(Path(request.validation_path), request, encoder)
        chosen = _draw(len(held_encoded), min(len(held_encoded), MOST_HELD_OUT), request.seed)
        return RunData(
            training=TokenizedSet.of(encoded),
            held_out=TokenizedSet.of(held_encoded[index] for index in chosen),
            held_out_examples=tuple(held_examples[index] for index in chosen),
            notes=notes,
        )
    chosen = _draw(len(encoded), request.hyperparameters.held_out_of(len(encoded)), request.seed)
    held = set(chosen)
    return RunData(
        training=TokenizedSet.of(example for index, example in enumerate(encoded) if index not in held),
        held_out=TokenizedSet.of(encoded[index] for index in chosen),
        held_out_examples=tuple(examples[index] for index in chosen),
        notes=notes,
    )


def _read(
    path: Path, request: RunRequest, encoder: Encoder
) -> tuple[list[Example], list[EncodedExample], tuple[str, ...]]:
    everything = list(read_examples(path, request.data_format))
    examples, encoded = [], []
    truncated = cut_tokens = 0
    for example, encoding in zip(everything, encoder.encode_batch(everything, request.setup.max_length), strict=True):
        truncated += encoding.truncated_tokens > 0
        cut_tokens += encoding.truncated_tokens
        if any(encoding.trained[1:]):
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
    return examples, encoded, tuple(notes)


def _draw(total: int, count: int, seed: int) -> Sequence[int]:
    """`count` of `total` numbers, ascending, by the seed."""
    drawn: list[int] = np.random.default_rng([seed, _HELD_OUT_STREAM]).permutation(total)[:count].tolist()
    return sorted(drawn)
