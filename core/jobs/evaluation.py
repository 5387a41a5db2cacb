"""What a finished run scored on its held-out rows, before and after training."""

from dataclasses import dataclass

from planner.constants import TELLING_ROWS

__all__ = ["Evaluation", "HeldOut", "Scores"]


@dataclass(frozen=True)
class Scores:
    """Scores of one model. None where nothing was held out, or exact match was not asked for."""

    valid_loss: float | None = None  # nats per trained token
    valid_mean_token_accuracy: float | None = None
    stopped_rate: float | None = None  # of the answers that the model ended by itself
    exact_match: float | None = None  # of the answers that come to the same as the reference


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
