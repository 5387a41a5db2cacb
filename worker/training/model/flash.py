"""Flash attention over examples end to end, proved on the very device before a run relies on it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.attention import (
    activate_flash_attention_impl,
    current_flash_attention_impl,
    list_flash_attention_impls,
    restore_flash_attention_impl,
)

from planner.memory.estimate import HOPPER
from planner.model.spec import ModelSpec
from planner.setup import VARLEN_FLASH, TrainingSetup
from worker.training.data.bounds import SequenceBounds
from worker.training.memory import is_out_of_memory
from worker.training.model.attention import varlen_attention
from worker.training.reporting import Reporter

_INSTEAD = {True: "A mask keeps the examples apart instead", False: "Rows are padded instead"}
_LENGTHS = (40, 1, 150, 67)  # tokens: one alone, and one longer than a tile of 128
_WINDOW = 24  # tokens
_TOLERANCE = 0.03  # of the largest value: bfloat16 rounds to 0.4%, weights and products once each


def proved_attention(
    setup: TrainingSetup, config: Mapping[str, Any], device: torch.device, reporter: Reporter
) -> TrainingSetup:
    """The setup, with SDPA in place of VARLEN_FLASH where that is wrong on this device; packed rows then take a mask.

    The mask takes more memory than was planned. Nothing is estimated anew here: the probe before the first step
    measures it within the run's limit, and where it does not fit, the micro-batch is stepped down as ever.
    """
    if setup.attn_implementation != VARLEN_FLASH:
        return setup
    spec = ModelSpec.from_config(config)
    prove = partial(flash_problem, spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim, device)
    if _takes_hopper_kernels(device):
        problem = _activation_problem() or prove()
        if problem is None:
            return setup
        if current_flash_attention_impl() is not None:
            restore_flash_attention_impl()
        reporter.warn(f"FlashAttention 3 {problem}. torch's own flash attention is used instead.")
    problem = prove()
    if problem is None:
        return setup
    reporter.warn(
        f"Flash attention over examples end to end {problem}. {_INSTEAD[setup.packing]}, which gives the same result, "
        "takes more time and memory, and may lead to a smaller micro-batch."
    )
    return replace(setup, attn_implementation="sdpa")


def _takes_hopper_kernels(device: torch.device) -> bool:
    """Whether FlashAttention 3 is there for torch to switch to: an H100 or its like, and the package with the kernels
    (`flash_attn_interface`), which this project does not bring."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != HOPPER:
        return False
    return find_spec("flash_attn_interface") is not None and "FA3" in list_flash_attention_impls()


def _activation_problem() -> str | None:
    """Have torch take FlashAttention 3's kernels; why it cannot, else None. A package for another torch or another
    CUDA fails in many ways while it is imported."""
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"cannot be loaded ({str(error).partition(chr(10))[0]})"
    return None


def flash_problem(heads: int, kv_heads: int, head_dim: int, device: torch.device) -> str | None:
    """How attention in bfloat16 over a few examples, and its gradients, differ from plain attention in float32; None
    where they agree. Raises what says that memory ran out."""
    generator = torch.Generator(device).manual_seed(0)
    tokens = sum(_LENGTHS)
    exact = [
        torch.randn(1, tokens, count, head_dim, generator=generator, device=device).transpose(1, 2)
        for count in (heads, kv_heads, kv_heads)
    ]  # [1, heads, tokens, head_dim], laid out as projections leave them
    gradient = torch.randn(1, tokens, heads, head_dim, generator=generator, device=device)
    bounds = SequenceBounds.of(_LENGTHS, device)
    for window in (None, _WINDOW):
        try:
            ours = _attend([tensor.bfloat16() for tensor in exact], gradient.bfloat16(), bounds, window)
        except (RuntimeError, TypeError, ValueError) as error:  # TypeError: a torch without one of its arguments
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            return f"cannot run on this device ({reason or type(error).__name__})"
        theirs = _attend([tensor.bfloat16().float() for tensor in exact], gradient, bounds, window)
        for name, mine, wanted in zip(("output", "query", "key", "value"), ours, theirs, strict=True):
            difference = float((mine.float() - wanted).abs().max() / wanted.abs().max())
            if not difference < _TOLERANCE:
                what = name if name == "output" else f"gradient of the {name}"
                return f"is wrong on this device: its {what} differs from plain attention's by {difference:.1%}"
    return None


def _attend(
    tensors: list[torch.Tensor], gradient: torch.Tensor, bounds: SequenceBounds, window: int | None
) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of query, key and value."""
    with torch.enable_grad():
        query, key, value = (tensor.detach().requires_grad_() for tensor in tensors)
        output, _ = varlen_attention(torch.nn.Identity(), query, key, value, None, sliding_window=window, bounds=bounds)
        return output.detach(), *torch.autograd.grad(output, (query, key, value), gradient)
