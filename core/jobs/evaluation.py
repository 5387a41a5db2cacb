"""What a finished run scored on its held-out rows, before and after training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.constants import TELLING_ROWS
from planner.objectives import VALID_LOSS

__all__ = ["Evaluation", "HeldOut", "Scores"]


@dataclass(frozen=True)
class Scores:
    """Scores of one model. None where nothing was held out, or exact match was not asked for."""

    metrics: Mapping[str, float] = field(default_factory=dict)  # of the objective, the loss among them
    stopped_rate: float | None = None  # of the answers that the model ended by itself
    exact_match: float | None = None  # of the answers that come to the same as the reference

    @property
    def valid_loss(self) -> float | None:
        """The mean loss of the held-out rows; nats per token where it is a likelihood."""
        return self.metrics.get(VALID_LOSS)


@dataclass(frozen=True)
class HeldOut:
    """What a run is measured on. Two losses compare only where the hash is the same."""

    rows: int
    scored_tokens: int
    sha256: str  # of the token ids and of which are scored

    @property
    def is_telling(self) -> bool:
        """Whether the rows are enough for a difference of two losses to mean something."""
        return self.rows >= TELLING_ROWS


@dataclass(frozen=True)
class Evaluation:
    """Both scores, on the same rows. `answers`: held-out prompts that were answered.

    An adapter trained on a 4-bit base is scored on that one; what it loses on the 16-bit base stands beside it.
    """

    before: Scores
    after: Scores
    answers: int
    is_on_4bit_base: bool = False
    valid_loss_on_16bit_base: float | None = None  # None where it was not measured
