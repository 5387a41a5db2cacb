"""From tokenized examples to micro-batches: which rows an optimizer step takes, in which order, in which layout.

A step's rows depend on the data, the seed and the effective batch alone. Splitting them into micro-batches comes
after, so that a smaller micro-batch (after running out of memory) trains on the same rows in the same order.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from core.datasets.examples import EncodedExample
from planner.setup import TrainingSetup
from worker.training.model.attention import Segments

# A flat row is filled up to a multiple of this: oneDNN compiles kernels, 1 ms and 0.7 MB each, for every new length.
FLAT_MULTIPLE = 32

Row = tuple[int, ...]  # example numbers; several when packed
Step = tuple[Row, ...]  # the rows of one optimizer step


class Layout(Enum):
    """How a micro-batch lies in memory."""

    PADDED = auto()  # [rows, longest row]; packed examples are told apart by position ids that start again
    FLAT = auto()  # [1, tokens]; attention is cut into examples, at most 31 tokens of padding


def choose_layout(*, cuts_attention: bool) -> Layout:
    """Flat where attention can be cut into examples."""
    return Layout.FLAT if cuts_attention else Layout.PADDED


@dataclass(frozen=True)
class TokenizedSet:
    """Encoded examples end to end: `tokens` int32 and `trained` bool [all tokens], `offsets` int64 [examples + 1]."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, examples: Iterable[EncodedExample]) -> "TokenizedSet":
        """The examples in their order."""
        tokens, trained, lengths = [], [], []
        for example in examples:
            tokens.append(np.array(example.input_ids, dtype=np.int32))
            trained.append(np.array(example.trained, dtype=np.bool_))
            lengths.append(len(example.input_ids))
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return cls(
            tokens=np.concatenate(tokens) if tokens else np.empty(0, np.int32),
            trained=np.concatenate(trained) if trained else np.empty(0, np.bool_),
            offsets=offsets,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.offsets)

    @property
    def scored_tokens(self) -> int:
        """Predictions that are scored: an example's first token is predicted from nothing."""
        return sum(int(self.trained_of(example)[1:].sum()) for example in range(len(self)))

    def scored(self) -> tuple[tuple[tuple[int, ...], tuple[bool, ...]], ...]:
        """Token ids, and which are scored, of each example that scores one: plain data, for another process."""
        rows = ((self.tokens_of(example), self.trained_of(example)) for example in range(len(self)))
        return tuple((tuple(ids.tolist()), tuple(trained.tolist())) for ids, trained in rows if trained[1:].any())

    def sha256(self) -> str:
        """A hash of the token ids, of which are scored, and of where examples end."""
        parts = (self.offsets.tobytes(), self.tokens.tobytes(), self.trained.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def tokens_of(self, example: int) -> NDArray[np.int32]:
        """Token ids of one example."""
        return self.tokens[self.offsets[example] : self.offsets[example + 1]]

    def trained_of(self, example: int) -> NDArray[np.bool_]:
        """Which of its tokens are trained."""
        return self.trained[self.offsets[example] : self.offsets[example + 1]]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward takes."""

    input_ids: torch.Tensor  # [rows, length]
    position_ids: torch.Tensor  # [rows, length], from 0 in every example
    predicting: torch.Tensor  # [trained], flat positions whose next token is trained
    labels: torch.Tensor  # [trained], those next tokens
    segments: Segments | None  # for the flat layout
    tokens: int  # non-padding

    @property
    def trained_tokens(self) -> int:
        """Predictions that are scored. An example's first token is predicted from nothing, hence never one of them."""
        return len(self.labels)

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch on its device, copied without waiting."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            input_ids=_sent(self.input_ids, device),
            position_ids=_sent(self.position_ids, device),
            predicting=_sent(self.predicting, device),
            labels=_sent(self.labels, device),
            segments=None if self.segments is None else self.segments.sent(partial(_sent, device=device)),
            tokens=self.tokens,
        )


def steps_per_epoch(data: TokenizedSet, setup: TrainingSetup) -> int:
    """Optimizer steps of one epoch; the last one may be smaller than the effective batch."""
    rows = len(_pack(data.lengths, range(len(data)), setup.max_length)) if setup.packing else len(data)
    return -(-rows // setup.effective_batch_size)


def epoch_steps(data: TokenizedSet, setup: TrainingSetup, seed: int, epoch: int) -> list[Step]:
    """The optimizer steps of an epoch (from 0), every example in exactly one, shuffled anew by seed and epoch."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(data)).tolist()
    if setup.packing:
        bins = _pack(data.lengths, order, setup.max_length)
        rows = [bins[index] for index in random.permutation(len(bins)).tolist()]
    else:
        rows = [(example,) for example in order]
    size = setup.effective_batch_size
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def micro_batches(data: TokenizedSet, step: Step, setup: TrainingSetup, layout: Layout) -> Iterator[MicroBatch]:
    """The step's rows in micro-batches of similar length, longest first: memory that does not suffice shows at once."""
    rows = sorted(step, key=lambda row: -_row_tokens(data, row))
    size = setup.per_device_train_batch_size
    for start in range(0, len(rows), size):
        yield collate(data, rows[start : start + size], layout)


def step_tokens(data: TokenizedSet, step: Step) -> tuple[int, int]:
    """Non-padding tokens of a step, and how many predictions of it are scored."""
    tokens = sum(_row_tokens(data, row) for row in step)
    trained = sum(int(data.trained_of(example)[1:].sum()) for row in step for example in row)
    return tokens, trained


def longest_micro_batch(data: TokenizedSet, setup: TrainingSetup, layout: Layout) -> MicroBatch:
    """The largest micro-batch that any epoch can produce."""
    lengths = data.lengths
    rows: Sequence[Row]
    if setup.packing:
        rows = _pack(lengths, range(len(data)), setup.max_length)
    else:
        rows = [(example,) for example in range(len(data))]
    rows = sorted(rows, key=lambda row: -_row_tokens(data, row))
    return collate(data, rows[: setup.per_device_train_batch_size], layout)


def collate(data: TokenizedSet, rows: Sequence[Row], layout: Layout) -> MicroBatch:
    """Rows in one layout. Padding stands right of every real token, where causal attention never looks."""
    examples = [example for row in rows for example in row]
    tokens = sum(_row_tokens(data, row) for row in rows)
    if layout is Layout.FLAT:
        width = -(-tokens // FLAT_MULTIPLE) * FLAT_MULTIPLE
        shape = (1, width)
    else:
        width = max(_row_tokens(data, row) for row in rows)
        shape = (len(rows), width)
    ids, positions = np.zeros(shape[0] * width, np.int64), np.zeros(shape[0] * width, np.int64)
    predicting, labels = [], []
    cursor = 0
    for number, row in enumerate(rows):
        if layout is Layout.PADDED:
            cursor = number * width
        for example in row:
            piece, trained = data.tokens_of(example), data.trained_of(example)
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
    if layout is Layout.FLAT and tokens < width:  # the rest is one more example, of which nothing is scored
        lengths.append(width - tokens)
        positions[tokens:] = np.arange(width - tokens)
    return MicroBatch(
        input_ids=torch.from_numpy(ids).view(shape),
        position_ids=torch.from_numpy(positions).view(shape),
        predicting=torch.from_numpy(np.concatenate(predicting).astype(np.int64)),
        labels=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        segments=Segments.of(lengths, torch.device("cpu")) if layout is Layout.FLAT else None,
        tokens=tokens,
    )


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


def _row_tokens(data: TokenizedSet, row: Row) -> int:
    return int(sum(data.offsets[example + 1] - data.offsets[example] for example in row))


def _pack(lengths: NDArray[np.int64], order: Iterable[int], capacity: int) -> list[Row]:
    """Best-fit decreasing: longest first, each into the fullest row that still has room for it.

    Equal lengths keep `order`; the number of rows depends on the lengths alone. An example longer than `capacity`
    gets a row of its own.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for example in sorted(order, key=lambda number: -int(lengths[number])):
        length = int(lengths[example])
        place = bisect_left(free, (length, -1))
        if place < len(free):
            room, row = free.pop(place)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(example)
        insort(free, (room - length, row))
    return [tuple(row) for row in rows]
