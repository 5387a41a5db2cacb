"""Supervised training: every token of a completion is predicted from what stands before it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from core.datasets.encoding import Encoder
from core.jobs.evaluation import HeldOut
from planner import objectives as planned
from planner.objectives import VALID_LOSS
from planner.setup import TrainingSetup
from worker.protocol import RunRequest
from worker.training.data.batches import Layout, MicroBatch, choose_layout
from worker.training.data.tokenized import TokenizedSet
from worker.training.memory import MemoryWatch
from worker.training.model.forward import score
from worker.training.model.loading import LoadedModel
from worker.training.objectives.likelihood import likelihood
from worker.training.objectives.objective import Loss, Objective, StepSize
from worker.training.objectives.supervised.rows import load_data
from worker.training.objectives.supervised.steps import (
    Step,
    epoch_steps,
    longest_micro_batch,
    micro_batches,
    step_tokens,
    steps_per_epoch,
)
from worker.training.stopping import StopSignal


class Supervised(Objective[Step, MicroBatch]):
    """The negative log likelihood of completions, in nats per token."""

    name = planned.Objective.SUPERVISED

    def __init__(self, request: RunRequest, encoder: Encoder) -> None:
        """Read the request's files. Raises InvalidDatasetError."""
        self.data = load_data(request, encoder)
        self.notes = self.data.notes
        self.held_out_examples = self.data.held_out_examples
        self._setup, self._seed = request.setup, request.seed
        self._layout = Layout.PADDED

    @property
    def held_out(self) -> HeldOut | None:
        """What the run is measured on; None where nothing is held out."""
        rows = self.data.held_out
        return HeldOut(len(rows), rows.scored_tokens, rows.sha256()) if len(rows) else None

    @property
    def sizes(self) -> list[int]:
        """Rows and tokens to train on, and rows held out."""
        return [len(self.data.training), int(self.data.training.offsets[-1]), len(self.data.held_out)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last one may be smaller than the effective batch."""
        return steps_per_epoch(self.data.training, self._setup)

    def prepare(self, loaded: LoadedModel) -> None:
        """Choose the layout that the model's attention takes."""
        self._layout = choose_layout(is_varlen=loaded.is_varlen)

    def epoch(self, number: int) -> Sequence[Step]:
        """The optimizer steps of an epoch (from 0)."""
        return epoch_steps(self.data.training, self._setup, self._seed, number)

    def size_of(self, step: Step) -> StepSize:
        """How large a step is."""
        return StepSize(*step_tokens(self.data.training, step))

    def micro_batches(self, step: Step) -> Iterator[MicroBatch]:
        """The step's rows in micro-batches of similar length, the longest first."""
        return micro_batches(self.data.training, step, self._setup, self._layout)

    def longest_micro_batch(self) -> MicroBatch:
        """The largest micro-batch that any epoch can produce."""
        return longest_micro_batch(self.data.training, self._setup, self._layout)

    @staticmethod
    def full_micro_batch(setup: TrainingSetup, layout: Layout) -> MicroBatch:
        """Rows of `max_length` tokens, all trained; packed ones hold two examples each."""
        rows, length = setup.per_device_train_batch_size, setup.max_length
        lengths = [length // 2, length - length // 2] * rows if setup.packing else [length] * rows
        data = TokenizedSet(
            tokens=np.ones(rows * length, np.int32),
            completion_mask=np.ones(rows * length, np.bool_),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )
        return longest_micro_batch(data, setup, layout)

    @staticmethod
    def loss(loaded: LoadedModel, batch: MicroBatch, normaliser: float) -> Loss:
        """Negative log likelihood of the scored tokens over `normaliser`, and how many were predicted right."""
        value, correct = score(loaded, batch, normaliser)
        return Loss(value, correct.reshape(1))

    @staticmethod
    def metrics(sums: Sequence[float], scored: int) -> Mapping[str, float]:
        """The share of tokens that were predicted right."""
        return {"train_mean_token_accuracy": sums[0] / scored}

    def evaluate(self, loaded: LoadedModel, watch: MemoryWatch, stop: StopSignal) -> Mapping[str, float] | None:
        """Loss and accuracy on the held-out rows; None where none of their tokens is scored."""
        size = self._setup.per_device_train_batch_size
        found = likelihood(loaded, self.data.held_out, size, watch, stop)
        return None if found is None else {VALID_LOSS: found.loss, "valid_mean_token_accuracy": found.accuracy}

    @property
    def proof_rows(self) -> TokenizedSet:
        """The held-out rows, or those trained on where none are held out."""
        return self.data.held_out if len(self.data.held_out) else self.data.training

    @property
    def scored_held_out(self) -> Sequence[tuple[tuple[int, ...], tuple[bool, ...]]]:
        """Token ids and completion mask of each held-out row."""
        return self.data.held_out.scored()
