"""The chunked loss is torch's cross entropy, without its logits."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 23, 16, 101
TRANSFORMS = [LogitTransform(), LogitTransform(softcap=5.0), LogitTransform(multiplier=1 / 8), LogitTransform(0.5, 3.0)]


def make(dtype: torch.dtype = torch.float64, *, bias: bool = False) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype) * 3
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    return hidden.requires_grad_(), head, torch.randint(0, VOCABULARY, (TOKENS,))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained_head", [False, True])
def test_value_accuracy_and_gradients_are_those_of_torch(
    transform: LogitTransform, bias: bool, trained_head: bool
) -> None:
    hidden, head, labels = make(torch.float32, bias=bias)
    head.requires_grad_(trained_head)
    logits = transform.apply(head(hidden))
    expected = functional.cross_entropy(logits, labels, reduction="sum") / 7.0
    wanted = [hidden, *head.parameters()] if trained_head else [hidden]
    expected_gradients = torch.autograd.grad(expected * 2, wanted)

    loss, correct = linear_cross_entropy(hidden, head, labels, 7.0, transform, chunk_tokens=5)
    gradients = torch.autograd.grad(loss * 2, wanted)

    torch.testing.assert_close(loss, expected)
    assert int(correct) == int((logits.argmax(-1) == labels).sum())
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_adapted_head_is_differentiated_through_its_adapter() -> None:
    hidden, head, labels = make(torch.float32)
    holder = nn.ModuleDict({"lm_head": head})
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False), holder)
    module = adapted["lm_head"]
    weights = [p for p in module.parameters() if p.requires_grad]
    expected = functional.cross_entropy(module(hidden), labels)
    expected_gradients = torch.autograd.grad(expected, [hidden, *weights])
    loss, _ = linear_cross_entropy(hidden, module, labels, TOKENS, LogitTransform(), chunk_tokens=5)
    gradients = torch.autograd.grad(loss, [hidden, *weights])
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_stays_within_its_rounding() -> None:
    hidden, head, labels = make(torch.bfloat16)
    loss, _ = linear_cross_entropy(hidden, head, labels, TOKENS, LogitTransform())
    expected = functional.cross_entropy(head(hidden).float(), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)


def test_logits_are_never_whole() -> None:
    hidden, head, labels = make(torch.float32)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, tuple) else (result,)
            largest = max([largest, *(out.numel() for out in outputs if isinstance(out, torch.Tensor))])
            return result

    with Watch():
        loss, _ = linear_cross_entropy(
            hidden, head.requires_grad_(False), labels, 1.0, LogitTransform(), chunk_tokens=4
        )
        loss.backward()
    assert largest <= max(4 * VOCABULARY, HIDDEN * VOCABULARY)
    assert largest < TOKENS * VOCABULARY


def test_scoring_alone_makes_no_gradient_of_a_trained_head() -> None:
    """A 4B model's head has 1.2 GB of them, which an evaluation must not take."""
    hidden, head, labels = make(bias=True)
    head.requires_grad_(True)
    shapes = set[torch.Size]()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is not torch.ops.aten.detach.default and isinstance(result, torch.Tensor):
                shapes.add(result.shape)
            return result

    with torch.inference_mode(), Shapes():
        loss, _ = linear_cross_entropy(hidden, head, labels, 1.0, LogitTransform(), chunk_tokens=5)
    torch.testing.assert_close(
        loss.double(), functional.cross_entropy(head(hidden), labels, reduction="sum"), rtol=1e-5, atol=1e-5
    )
    assert torch.Size([5, VOCABULARY]) in shapes
    assert head.weight.shape not in shapes
