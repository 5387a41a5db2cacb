"""Bytes of live storages, by category, while fake tensors run: an allocator's ledger without memory.

Counts what each operator returns, from its allocation until the last tensor that uses the storage is gone, and what
CUDA's attention kernels take meanwhile, which fake ones do not show.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import bitsandbytes  # noqa: F401  # registers its operators
import torch
import torch.nn.attention.varlen  # registers its operators
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.constants import FLASH_PADDING
from planner.memory.decoder import padded_head

_BLOCK_BYTES = 512  # kMinBlockSize of torch's CUDACachingAllocator: every allocation is a multiple of it


class Category(StrEnum):
    """What a storage holds."""

    BASE = "base_weights"
    ADAPTERS = "adapters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer_state"
    INPUTS = "inputs"
    ACTIVATIONS = "activations"  # kept for the backward pass, and temporaries
    WORKSPACES = "workspaces"  # within one kernel


@dataclass(frozen=True)
class Moment:
    """The moment of a phase at which most bytes were alive."""

    phase: str
    operator: str
    bytes_by_category: dict[Category, int]

    @property
    def total_bytes(self) -> int:
        """All categories together."""
        return sum(self.bytes_by_category.values())


class MemoryTracker(TorchDispatchMode):
    """Enter it inside a FakeTensorMode; `moments` then holds the highest moment of each phase that was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[str, Moment] = {}
        self._held: dict[int, tuple[Category, int]] = {}
        self._bytes: Counter[Category] = Counter()
        self._total = 0
        self._phase: str | None = None

    def enter(self, phase: str | None) -> None:
        """What follows belongs to `phase`; to none, where it is None."""
        self._phase = phase
        self._look("start", 0)

    def bytes_now(self) -> dict[Category, int]:
        """Live bytes by category."""
        return {category: size for category, size in self._bytes.items() if size}

    def assign(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count the storages of `tensors` under `category` from now on."""
        for tensor in tensors:
            key = self._hold(tensor)
            before, size = self._held[key]
            self._bytes[before] -= size
            self._bytes[category] += size
            self._held[key] = category, size

    def forget(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the storages of `tensors` no longer: they lie outside the device."""
        for tensor in tensors:
            key = self._hold(tensor)
            category, size = self._held[key]
            self._bytes[category] -= size
            self._total -= size
            self._held[key] = category, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.add.Tensor and _is_sum_of_gradients():
            self._put_into(args[0], result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._hold(leaf)
        workspace = _WORKSPACES.get(func)
        self._look(str(func), 0 if workspace is None else workspace(*args))
        return result

    def _hold(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        key: int = storage._cdata
        if key not in self._held:
            size = _rounded(storage.nbytes())
            self._bytes[Category.ACTIVATIONS] += size
            self._total += size
            self._enrol(storage, Category.ACTIVATIONS, size)
        return key

    def _enrol(self, storage: torch.UntypedStorage, category: Category, size: int) -> None:
        self._held[storage._cdata] = category, size
        weakref.finalize(storage, self._let_go, storage._cdata)

    def _put_into(self, tensor: torch.Tensor, result: torch.Tensor) -> None:
        """Count `result` as if it had been written over `tensor`."""
        key = self._hold(tensor)
        category, size = self._held[key]
        if size == _rounded(result.untyped_storage().nbytes()):
            self._held[key] = category, 0
            self._enrol(result.untyped_storage(), category, size)

    def _let_go(self, key: int) -> None:
        category, size = self._held.pop(key)
        self._bytes[category] -= size
        self._total -= size

    def _look(self, operator: str, workspace_bytes: int) -> None:
        if self._phase is None:
            return
        highest = self.moments.get(self._phase)
        if highest is not None and self._total + workspace_bytes <= highest.total_bytes:
            return
        now = self.bytes_now()
        if workspace_bytes:
            now[Category.WORKSPACES] = workspace_bytes
        self.moments[self._phase] = Moment(self._phase, operator, now)


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _is_sum_of_gradients() -> bool:
    """Whether autograd's engine is adding a second gradient to a first.

    It does so in place, but never where a dispatch mode watches (input_buffer.cpp, `can_accumulate_inplace`). Not a
    recomputed forward pass, which runs with gradients enabled.
    """
    return not torch.is_grad_enabled() and torch._C._current_autograd_node() is not None


def _flash_backward(_gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_rest: object) -> int:
    """The query's gradient in float32, and keys' and values' per query head where heads share them (flash_api.cpp,
    mha_bwd: dq_accum, dk_expanded, dv_expanded).
    """
    expanded = 2 * query.numel() * query.element_size() if key.shape[1] != query.shape[1] else 0
    return query.numel() * 4 + expanded


def _varlen_backward(
    _gradient: torch.Tensor,
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key: torch.Tensor,
    _value: torch.Tensor,
    _out: torch.Tensor,
    _log_sum: torch.Tensor,
    ends: torch.Tensor,  # [examples + 1]
    *_rest: object,
) -> int:
    """The same for examples end to end, each with a tile's rows to spare, and a product per row and head besides
    (flash_api.cpp, mha_varlen_bwd: dq_accum, softmax_d, dk_expanded, dv_expanded).
    """
    tokens, heads, head_dim = query.shape
    rows = tokens + FLASH_PADDING * (len(ends) - 1)
    expanded = 2 * query.numel() * query.element_size() if key.shape[1] != heads else 0
    return rows * heads * (padded_head(head_dim) + 1) * 4 + expanded


def _efficient_backward(_gradient: torch.Tensor, query: torch.Tensor, *_rest: object) -> int:
    """The query's gradient in float32 (kernel_backward.h: kNeedsAccumGradQ)."""
    return query.numel() * 4


def _product_4bit(inputs: torch.Tensor, _packed: torch.Tensor, shape: Sequence[int], *_rest: object) -> int:
    """The weight in 16 bits, for many rows (bitsandbytes' gemm_4bit dequantizes for them)."""
    return math.prod(shape) * inputs.element_size()


def _log_sum_exp(inputs: torch.Tensor, *_rest: object) -> int:
    """The exponentials of all inputs (ReduceOps.cpp, logsumexp_out_impl)."""
    return inputs.numel() * inputs.element_size()


_WORKSPACES: dict[Any, Callable[..., int]] = {
    torch.ops.aten.logsumexp.default: _log_sum_exp,
    torch.ops.bitsandbytes.gemm_4bit.default: _product_4bit,
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    torch.ops.torch_attn._varlen_attn_backward.default: _varlen_backward,
}
