"""torch's varlen_attn by its documented contract, for a machine without its kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import torch
from torch.nn import functional

from worker.training.model import attention

HALVES = (torch.bfloat16, torch.float16)


def reference_varlen_attn(
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,  # int32 [examples + 1]
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention example by example; refuses what the kernel would refuse or silently get wrong."""
    ends = cu_seq_q.tolist()
    lengths = [after - before for before, after in pairwise(ends)]
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.is_contiguous()
    assert cu_seq_k.tolist() == ends
    assert (ends[0], ends[-1]) == (0, len(query))
    assert len(query) == len(key) == len(value)
    assert max_q == max_k == max(lengths)
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    assert query.dtype == key.dtype == value.dtype
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = window_size
    outputs = []
    for start, length in zip(ends, lengths, strict=False):
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]  # of a key, to the left
        visible = torch.ones(length, length, dtype=torch.bool)
        if left >= 0:
            visible &= distance <= left
        if right >= 0:
            visible &= -distance <= right
        pieces = [tensor[start : start + length].transpose(0, 1)[None] for tensor in (query, key, value)]
        mixed = functional.scaled_dot_product_attention(*pieces, attn_mask=visible, scale=scale, enable_gqa=enable_gqa)
        outputs.append(mixed[0].transpose(0, 1))
    return torch.cat(outputs)


@contextmanager
def reference_flash(*dtypes: torch.dtype, op: Callable[..., torch.Tensor] | None = None) -> Iterator[list[int]]:
    """Within, tensors of these dtypes take the path of flash attention, with the reference or `op` in its place.

    Yields a list that grows by the number of examples of every call.
    """
    calls: list[int] = []

    def counted(*args: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append(len(args[3]) - 1)
        return (op or reference_varlen_attn)(*args, **options)  # type: ignore[arg-type]

    takes = patch.object(attention, "takes_flash", lambda query: query.dtype in dtypes)
    with takes, patch.object(attention, "varlen_attn", counted):
        yield calls
