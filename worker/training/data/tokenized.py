"""Encoded examples as arrays."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.datasets.examples import EncodedExample


@dataclass(frozen=True)
class TokenizedSet:
    """Encoded examples end to end. `tokens` int32 and `completion_mask` bool: [all tokens]; `offsets` int64:
    [examples + 1]."""

    tokens: NDArray[np.int32]
    completion_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, examples: Iterable[EncodedExample]) -> "TokenizedSet":
        """The examples in their order."""
        tokens, trained, lengths = [], [], []
        for example in examples:
            tokens.append(np.array(example.input_ids, dtype=np.int32))
            trained.append(np.array(example.completion_mask, dtype=np.bool_))
            lengths.append(len(example.input_ids))
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        return cls(
            tokens=np.concatenate(tokens) if tokens else np.empty(0, np.int32),
            completion_mask=np.concatenate(trained) if trained else np.empty(0, np.bool_),
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
        return sum(int(self.completion_mask_of(example)[1:].sum()) for example in range(len(self)))

    def scored(self) -> tuple[tuple[tuple[int, ...], tuple[bool, ...]], ...]:
        """Token ids, and which are scored, of each example that scores one: plain data, for another process."""
        rows = ((self.tokens_of(example), self.completion_mask_of(example)) for example in range(len(self)))
        return tuple((tuple(ids.tolist()), tuple(trained.tolist())) for ids, trained in rows if trained[1:].any())

    def sha256(self) -> str:
        """A hash of the token ids, of which are scored, and of where examples end."""
        parts = (self.offsets.tobytes(), self.tokens.tobytes(), self.completion_mask.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def tokens_of(self, example: int) -> NDArray[np.int32]:
        """Token ids of one example."""
        return self.tokens[self.offsets[example] : self.offsets[example + 1]]

    def completion_mask_of(self, example: int) -> NDArray[np.bool_]:
        """Which of its tokens are trained."""
        return self.completion_mask[self.offsets[example] : self.offsets[example + 1]]
