"""Attention cut into examples is attention within each example."""

import pytest
import torch
from torch.nn import functional

from worker.training.attention import Segments, segmented_attention

HEADS, KV_HEADS, DIM = 4, 2, 8


def reference(query, key, value, lengths, window=None, softcap=None):  # type: ignore[no-untyped-def]
    outputs, start = [], 0
    for length in lengths:
        q, k, v = (t[:, :, start : start + length] for t in (query, key, value))
        k, v = k.repeat_interleave(HEADS // KV_HEADS, 1), v.repeat_interleave(HEADS // KV_HEADS, 1)
        scores = q @ k.transpose(2, 3) * DIM**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        outputs.append(functional.softmax(scores.masked_fill(~seen, float("-inf")), -1) @ v)
        start += length
    return torch.cat(outputs, 2).transpose(1, 2)


@pytest.mark.parametrize(
    ("lengths", "window", "softcap"),
    [
        ((5, 1, 9), None, None),
        ((16, 16), None, None),
        ((5, 12), 4, None),
        ((5, 12), None, 2.0),
        ((600, 20), None, None),  # long rows go through the fused kernel
        ((600, 20), 64, None),
    ],
)
def test_each_example_sees_itself_alone(lengths: tuple[int, ...], window: int | None, softcap: float | None) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, sum(lengths), DIM, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    segments = Segments.of(lengths, torch.device("cpu"))
    output, _ = segmented_attention(
        torch.nn.Module(), *tensors, None, sliding_window=window, softcap=softcap, segments=segments
    )
    expected = reference(*tensors, lengths, window, softcap)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((output * weight).sum(), tensors)
    theirs = torch.autograd.grad((expected * weight).sum(), tensors)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
