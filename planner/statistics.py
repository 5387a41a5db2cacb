"""What the planner knows of a data set: counts of tokens, never text."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DatasetStatistics:
    """Token counts of a data set under one tokenizer and chat template.

    `token_lengths` holds the length of each example before any truncation, ascending. For a large set it is a
    sample, and the totals are scaled up from it; `sampled` says so.
    """

    examples: int
    tokens: int
    trained_tokens: int  # tokens whose label is not masked
    token_lengths: tuple[int, ...]
    validation_examples: int = 0
    validation_tokens: int = 0
    sampled: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest example seen."""
        return self.token_lengths[-1] if self.token_lengths else 0

    def with_validation(self, held_out: "DatasetStatistics") -> "DatasetStatistics":
        """These statistics, with `held_out` as the validation set."""
        return replace(self, validation_examples=held_out.examples, validation_tokens=held_out.tokens)
