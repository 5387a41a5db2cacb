"""Rows of token ids as micro-batches, in the layout that the model's attention takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np
import torch

from worker.training.data.bounds import SequenceBounds
from worker.training.data.packing import Row
from worker.training.data.tokenized import TokenizedSet

# A flat row is filled up to a multiple of this: oneDNN compiles kernels, 1 ms and 0.7 MB each, for every new length.
PADDING_FREE_MULTIPLE = 32


class Layout(Enum):
    """How a micro-batch lies in memory."""

    PADDED = auto()  # [rows, longest row]; packed examples are told apart by position ids that start again
    PADDING_FREE = auto()  # [1, tokens]; attention is cut into examples, at most 31 tokens of padding


def choose_layout(*, is_varlen: bool) -> Layout:
    """Flat where attention can be cut into examples."""
    return Layout.PADDING_FREE if is_varlen else Layout.PADDED


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward takes."""

    input_ids: torch.Tensor  # [rows, length]
    position_ids: torch.Tensor  # [rows, length], from 0 in every example
    predicting: torch.Tensor  # [trained], flat positions whose next token is trained
    labels: torch.Tensor  # [trained], those next tokens
    bounds: SequenceBounds | None  # for the flat layout
    tokens: int  # non-padding

    @property
    def scored(self) -> int:
        """Predictions that are scored. An example's first token is predicted from nothing, hence never one of them."""
        return len(self.labels)

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch on its device, copied without waiting."""
        if device.type == "cpu":
            return self
        return self.sent(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    @property
    def tensors(self) -> list[torch.Tensor]:
        """What of it lies on the device, but for the places of its examples."""
        return [self.input_ids, self.position_ids, self.predicting, self.labels]

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        """The batch with its tensors where `send` puts them."""
        return replace(
            self,
            input_ids=send(self.input_ids),
            position_ids=send(self.position_ids),
            predicting=send(self.predicting),
            labels=send(self.labels),
            bounds=None if self.bounds is None else self.bounds.sent(send),
        )


def collate(data: TokenizedSet, rows: Sequence[Row], layout: Layout) -> MicroBatch:
    """Rows in one layout. Padding stands right of every real token, where causal attention never looks."""
    examples = [example for row in rows for example in row]
    tokens = sum(row_tokens(data, row) for row in rows)
    if layout is Layout.PADDING_FREE:
        width = -(-tokens // PADDING_FREE_MULTIPLE) * PADDING_FREE_MULTIPLE
        shape = (1, width)
    else:
        width = max(row_tokens(data, row) for row in rows)
        shape = (len(rows), width)
    ids, positions = np.zeros(shape[0] * width, np.int64), np.zeros(shape[0] * width, np.int64)
    predicting, labels = [], []
    cursor = 0
    for number, row in enumerate(rows):
        if layout is Layout.PADDED:
            cursor = number * width
        for example in row:
            piece, trained = data.tokens_of(example), data.completion_mask_of(example)
            ids[cursor : cursor + len(piece)] = piece
            positions[cursor : cursor + len(piece)] = np.arange(len(piece))
            targets = np.flatnonzero(trained[1:])
            predicting.append(cursor + targets)
            labels.append(piece[targets + 1])
            cursor += len(piece)
        if layout is Layout.PADDED:  # padding counts on, so that it is not taken for further examples
            end = (number + 1) * width
            positions[cursor:end] = np.arange(end - cursor)
    lengths = data.lengths[examples].tolist()
    if layout is Layout.PADDING_FREE and tokens < width:  # the rest is one more example, of which nothing is scored
        lengths.append(width - tokens)
        positions[tokens:] = np.arange(width - tokens)
    return MicroBatch(
        input_ids=torch.from_numpy(ids).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        predicting=torch.from_numpy(np.concatenate(predicting).astype(np.int64)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        bounds=SequenceBounds.of(lengths, torch.device("cpu")) if layout is Layout.PADDING_FREE else None,
        tokens=tokens,
    )


def row_tokens(data: TokenizedSet, row: Row) -> int:
    """Tokens of all examples of a row."""
    return int(sum(data.offsets[example + 1] - data.offsets[example] for example in row))
