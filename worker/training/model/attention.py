"""Attention over examples laid end to end in one row: no padding, no contamination.

On CUDA flash attention takes the row as it is, with the places where its examples end (torch's varlen_attn). On a CPU
the linear layers are fastest on one long row, and torch's fused attention is slow on short ones (its backward in
bfloat16 takes 5x the time of plain matrix products at 100 tokens). So the row is cut into its examples there: short
ones go through plain batched products, long ones through the fused kernel one by one. The same is done for what flash
attention does not take: float32, soft caps, dropout.
"""

from functools import lru_cache

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from planner.constants import LONGEST_PLAIN_ATTENTION
from worker.training.data.bounds import WIDTH_MULTIPLE, SequenceBounds

VARLEN_ATTENTION = "tunewright_varlen"

# transformers builds no mask of its own where it is given a finished one; attention within bounds needs none.
FINISHED_MASK = torch.empty(1, 1, 1, 1)


class MissingBoundsError(TypeError):
    """Raised within a model whose code drops the arguments that it does not know, instead of handing them down."""


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, head_dim]
    key: torch.Tensor,  # [1, kv_heads, tokens, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    bounds: SequenceBounds | None = None,
    **_kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example of the row. Returns [1, tokens, heads, head_dim]."""
    if bounds is None:
        raise MissingBoundsError("A row of several examples needs its bounds.")
    del module, attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if takes_flash(query) and softcap is None and not dropout:
        return _flash(query, key, value, bounds, scale, sliding_window), None
    if bounds.width <= LONGEST_PLAIN_ATTENTION or softcap is not None:
        return _plain(query, key, value, bounds, scale, dropout, softcap, sliding_window), None
    return _fused(query, key, value, bounds, scale, dropout, sliding_window), None


def takes_flash(query: torch.Tensor) -> bool:
    """Whether flash attention's kernels take such a tensor. Their other limits the planner knows."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


def takes_varlen(backbone: torch.nn.Module, device: torch.device) -> bool:
    """Whether a model set to VARLEN_ATTENTION hands a batch's bounds down to it."""
    tokens = torch.arange(2, device=device)
    bounds = SequenceBounds((2,), tokens, 2 * tokens.int(), max_seqlen=2, width=WIDTH_MULTIPLE)
    try:
        with torch.no_grad():
            backbone(
                input_ids=tokens[None],
                position_ids=tokens[None],
                attention_mask=FINISHED_MASK,
                bounds=bounds,
                use_cache=False,
            )
    except MissingBoundsError:
        return False
    return True


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: SequenceBounds,
    scale: float,
    sliding_window: int | None,
) -> torch.Tensor:
    outputs = varlen_attn(
        query[0].transpose(0, 1),  # [tokens, heads, head_dim]
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        bounds.cu_seqlens,
        bounds.cu_seqlens,
        bounds.max_seqlen,
        bounds.max_seqlen,
        scale=scale,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),  # keys left and right of the query's own
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(outputs, torch.Tensor)  # alone, where the sums of its exponentials are not asked for
    return outputs.unsqueeze(0)


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: SequenceBounds,
    scale: float,
    dropout: float,
    sliding_window: int | None,
) -> torch.Tensor:
    pieces = zip(*(tensor.split(bounds.lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for query_piece, key_piece, value_piece in pieces:
        length = query_piece.shape[2]
        windowed = sliding_window is not None and length > sliding_window
        outputs.append(
            functional.scaled_dot_product_attention(
                query_piece,
                key_piece,
                value_piece,
                attn_mask=_visible(length, sliding_window, query.device) if windowed else None,
                dropout_p=dropout,
                is_causal=not windowed,
                scale=scale,
                enable_gqa=query_piece.shape[1] != key_piece.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: SequenceBounds,
    scale: float,
    dropout: float,
    softcap: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    examples, width = len(bounds.lengths), bounds.width
    heads, kv_heads = query.shape[1], key.shape[1]
    groups = heads // kv_heads
    # Query heads that share a key head are stacked along the length, so that keys are never repeated.
    queries = (
        _padded(query * scale, bounds).unflatten(1, (kv_heads, groups)).reshape(examples * kv_heads, -1, query.shape[3])
    )
    keys = _padded(key, bounds).flatten(0, 1)  # [examples x kv_heads, width, head_dim]
    values = _padded(value, bounds).flatten(0, 1)
    # Padding lies to the right of every real token, so the causal mask hides it too.
    bias = _bias(width, sliding_window, groups, query.dtype, query.device)
    if softcap is None:
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2))  # [examples x kv_heads, groups x width, width]
    else:
        scores = bias + softcap * torch.tanh(torch.bmm(queries, keys.transpose(1, 2)) / softcap)
    weights = functional.dropout(torch.softmax(scores, dim=-1), dropout)
    mixed = torch.bmm(weights, values)  # [examples x kv_heads, groups x width, head_dim]
    mixed = mixed.view(examples, heads, width, -1).transpose(1, 2).reshape(examples * width, heads, -1)
    return mixed.index_select(0, bounds.slots).unsqueeze(0)


def _padded(tensor: torch.Tensor, bounds: SequenceBounds) -> torch.Tensor:
    """[1, heads, tokens, head_dim] -> [examples, heads, width, head_dim], zeros after each example's end."""
    rows = tensor[0].transpose(0, 1)  # [tokens, heads, head_dim]
    padded = rows.new_zeros(len(bounds.lengths) * bounds.width, *rows.shape[1:])
    padded = padded.index_copy(0, bounds.slots, rows)
    return padded.view(len(bounds.lengths), bounds.width, *rows.shape[1:]).transpose(1, 2).contiguous()


def _visible(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """Boolean [length, length]: which keys (columns) each query sees."""
    visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return visible if sliding_window is None else visible.triu(1 - sliding_window)


@lru_cache(maxsize=8)  # asked for by every layer
def _bias(
    width: int, sliding_window: int | None, groups: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """[1, groups x width, width]: 0 for the keys that a query sees, minus infinity for the others."""
    hidden = ~_visible(width, sliding_window, device)
    return torch.zeros(width, width, dtype=dtype, device=device).masked_fill(hidden, float("-inf")).repeat(1, groups, 1)


def _no_mask(*_args: object, **_kwargs: object) -> None:
    return None


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention)
AttentionMaskInterface.register(VARLEN_ATTENTION, _no_mask)
