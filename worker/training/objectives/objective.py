"""What a run learns, as the loop sees it. The loop knows no objective by name: it asks for batches and their loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import torch

from core.datasets.encoding import Encoder
from core.datasets.examples import Example
from core.jobs.evaluation import HeldOut
from planner import objectives as planned
from planner.setup import TrainingSetup
from worker.protocol import RunRequest
from worker.training.data.batches import Layout
from worker.training.data.tokenized import TokenizedSet
from worker.training.memory import MemoryWatch
from worker.training.model.loading import LoadedModel
from worker.training.stopping import StopSignal


class Batch(Protocol):
    """What one forward and backward takes."""

    @property
    def scored(self) -> int:
        """How many terms its loss is a sum of: tokens, or sequences where each has one loss."""

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """What of it lies on the device."""

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The batch with its tensors where `send` puts them."""

    def to(self, device: torch.device) -> Self:
        """The batch on its device, copied without waiting."""


BatchType = TypeVar("BatchType", bound=Batch)
StepType = TypeVar("StepType")


@dataclass(frozen=True)
class StepSize:
    """What an optimizer step goes through."""

    tokens: int  # non-padding, in all sequences of its examples
    scored: int  # terms of its loss, over which it is a mean


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch, a scalar to differentiate, and the sums that the step's metrics are made of."""

    value: torch.Tensor
    sums: torch.Tensor  # [metrics], without a gradient


class Objective(ABC, Generic[StepType, BatchType]):
    """One run's objective, with the run's rows.

    Several sequences per example are a matter of its batches, a loss per sequence of `loss`; a second forward pass
    without the adapter has its place in `prepare` (once, before the first step) or in `loss`, as has generation.
    """

    name: ClassVar[planned.Objective]
    held_out_examples: Sequence[Example]
    notes: Sequence[str]  # what was cut or left out, in sentences

    @abstractmethod
    def __init__(self, request: RunRequest, encoder: Encoder) -> None:
        """Read the request's files. Raises InvalidDatasetError."""

    @property
    @abstractmethod
    def held_out(self) -> HeldOut | None:
        """What the run is measured on; None where nothing is held out."""

    @property
    @abstractmethod
    def sizes(self) -> list[int]:
        """Numbers by which a checkpoint of a run on other rows is known."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last one may be smaller than the effective batch."""

    @abstractmethod
    def prepare(self, loaded: LoadedModel) -> None:
        """Get to know the model, before the first batch is asked for."""

    @abstractmethod
    def epoch(self, number: int) -> Sequence[StepType]:
        """The optimizer steps of an epoch (from 0): a function of data, seed and effective batch alone."""

    @abstractmethod
    def size_of(self, step: StepType) -> StepSize:
        """How large a step is."""

    @abstractmethod
    def micro_batches(self, step: StepType) -> Iterable[BatchType]:
        """The step in micro-batches, the largest first: memory that does not suffice shows at once."""

    @abstractmethod
    def longest_micro_batch(self) -> BatchType:
        """The largest micro-batch that any epoch can produce."""

    @staticmethod
    @abstractmethod
    def full_micro_batch(setup: TrainingSetup, layout: Layout) -> BatchType:
        """The largest micro-batch that the setup allows, made up: what a dry run takes."""

    @staticmethod
    @abstractmethod
    def loss(loaded: LoadedModel, batch: BatchType, normaliser: float) -> Loss:
        """The loss of a micro-batch, summed over its terms and divided by `normaliser`.

        `normaliser` is the number of terms of the whole step, so that gradients of its micro-batches add up to those
        of the mean.
        """

    @staticmethod
    @abstractmethod
    def metrics(sums: Sequence[float], scored: int) -> Mapping[str, float]:
        """The step's metrics by name, but for its loss, from what `loss` summed over its micro-batches."""

    @abstractmethod
    def evaluate(self, loaded: LoadedModel, watch: MemoryWatch, stop: StopSignal) -> Mapping[str, float] | None:
        """The metrics of the held-out rows by name, the loss among them; None where nothing of them is scored."""

    @property
    @abstractmethod
    def proof_rows(self) -> TokenizedSet:
        """Rows whose likelihood proves that an export is what was trained."""

    @property
    @abstractmethod
    def scored_held_out(self) -> Sequence[tuple[tuple[int, ...], tuple[bool, ...]]]:
        """Token ids and completion mask of each held-out row: plain data, for another process."""
