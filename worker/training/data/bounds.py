"""Where the examples of a row lie that are laid end to end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

# oneDNN compiles a kernel, 1 ms and 0.7 MB, for each new shape: few shapes recur, many do not.
WIDTH_MULTIPLE = 16


@dataclass(frozen=True)
class SequenceBounds:
    """Where the examples of a row lie.

    `slots`, int64 [tokens]: each token's place in the padded [examples x width]. `cu_seqlens`, int32 [examples + 1]: 0,
    then the place behind each example's last token.
    """

    lengths: tuple[int, ...]
    slots: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int  # of the lengths, apart from them: code compiled for it and not for them takes every batch
    width: int  # of the padded layout: the longest, rounded up

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "SequenceBounds":
        """The bounds of a row whose examples have these lengths, in order."""
        longest = max(lengths)
        width = -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        starts = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) * width
        offsets = torch.cat([torch.arange(length) for length in lengths])
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(lengths), (starts + offsets).to(device), ends.to(device), longest, width)

    def sent(self, send: Callable[[torch.Tensor], torch.Tensor]) -> "SequenceBounds":
        """The same with its tensors where `send` puts them."""
        return replace(self, slots=send(self.slots), cu_seqlens=send(self.cu_seqlens))
