"""What a finished run scored on its held-out rows, before and after training."""

from dataclasses import dataclass

__all__ = ["Evaluation", "Scores"]


@dataclass(frozen=True)
class Scores:
    """Scores of one model. None where nothing was held out, or exact match was not asked for."""

    valid_loss: float | None = None  # nats per trained token
    valid_mean_token_accuracy: float | None = None
    stopped_rate: float | None = None  # of the answers that the model ended by itself
    exact_match: float | None = None  # of the answers that come to the same as the reference


@dataclass(frozen=True)
class Evaluation:
    """Both scores, on the same rows. `answers`: held-out prompts that were answered."""

    before: Scores
    after: Scores
    answers: int
