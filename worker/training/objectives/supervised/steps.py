"""Which rows an optimizer step takes, in which order.

A step's rows depend on the data, the seed and the effective batch alone. Splitting them into micro-batches comes
after, so that a smaller micro-batch (after running out of memory) trains on the same rows in the same order.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from planner.setup import TrainingSetup
from worker.training.data.batches import Layout, MicroBatch, collate, row_tokens
from worker.training.data.packing import Row, pack
from worker.training.data.tokenized import TokenizedSet

Step = tuple[Row, ...]  # the rows of one optimizer step


def steps_per_epoch(data: TokenizedSet, setup: TrainingSetup) -> int:
    """Optimizer steps of one epoch; the last one may be smaller than the effective batch."""
    rows = len(pack(data.lengths, range(len(data)), setup.max_length)) if setup.packing else len(data)
    return -(-rows // setup.effective_batch_size)


def epoch_steps(data: TokenizedSet, setup: TrainingSetup, seed: int, epoch: int) -> list[Step]:
    """The optimizer steps of an epoch (from 0), every example in exactly one, shuffled anew by seed and epoch."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(data)).tolist()
    if setup.packing:
        bins = pack(data.lengths, order, setup.max_length)
        rows = [bins[index] for index in random.permutation(len(bins)).tolist()]
    else:
        rows = [(example,) for example in order]
    size = setup.effective_batch_size
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def micro_batches(data: TokenizedSet, step: Step, setup: TrainingSetup, layout: Layout) -> Iterator[MicroBatch]:
    """The step's rows in micro-batches of similar length, longest first: memory that does not suffice shows at once."""
    rows = sorted(step, key=lambda row: -row_tokens(data, row))
    size = setup.per_device_train_batch_size
    for start in range(0, len(rows), size):
        yield collate(data, rows[start : start + size], layout)


def step_tokens(data: TokenizedSet, step: Step) -> tuple[int, int]:
    """Non-padding tokens of a step, and how many predictions of it are scored."""
    tokens = sum(row_tokens(data, row) for row in step)
    trained = sum(int(data.completion_mask_of(example)[1:].sum()) for row in step for example in row)
    return tokens, trained


def longest_micro_batch(data: TokenizedSet, setup: TrainingSetup, layout: Layout) -> MicroBatch:
    """The largest micro-batch that any epoch can produce."""
    lengths = data.lengths
    rows: Sequence[Row]
    if setup.packing:
        rows = pack(lengths, range(len(data)), setup.max_length)
    else:
        rows = [(example,) for example in range(len(data))]
    rows = sorted(rows, key=lambda row: -row_tokens(data, row))
    return collate(data, rows[: setup.per_device_train_batch_size], layout)
