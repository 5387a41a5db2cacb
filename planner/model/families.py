"""Model families: what a `config.json` leaves unsaid, and how each family builds a decoder layer.

Defaults are those of the configuration classes of transformers 5.23 (`configuration_<family>.py`); layer shapes are
those of its `modeling_<family>.py`. A config.json on the hub writes only what differs from the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class NormPlacement(StrEnum):
    """Where a layer's RMSNorms stand."""

    PRE = "pre"  # before attention and before the MLP
    POST = "post"  # after attention and after the MLP
    SANDWICH = "sandwich"  # both


class QueryNorm(StrEnum):
    """Norms on the projected queries and keys."""

    NONE = "none"
    HEAD = "head"  # one weight of head_dim, shared by all heads
    FULL = "full"  # one weight over all heads


@dataclass(frozen=True)
class Family:
    """How one `model_type` builds its decoder layer."""

    model_type: str
    defaults: Mapping[str, object]
    norm_placement: NormPlacement = NormPlacement.PRE
    query_norm: QueryNorm = QueryNorm.NONE
    attention_bias_key: str | None = None  # config key that puts a bias on q, k, v and o
    query_bias_key: str | None = None  # config key that puts a bias on q, k and v only
    query_bias: bool = False  # q, k, v always biased
    mlp_bias_key: str | None = None
    fused_projections: bool = False  # one qkv_proj and one gate_up_proj
    activation_key: str = "hidden_act"  # config key of the gated MLP's activation
    tanh_gelu: bool = False  # the configuration class takes "gelu" for its tanh approximation
    own_rotary: bool = False  # the rotary embedding is computed otherwise than Llama's
    float32_norm_weight: bool = False  # the norm multiplies by its weight before it casts back
    scaled_embedding: bool = False  # embeddings are multiplied before the first layer
    scaled_logits: bool = False  # logits are divided or soft-capped
    softcapped_logits: bool = False  # tanh before the softmax over the vocabulary
    outgrows_float16: bool = False  # activations above 65,504 (Gemma's: transformers' own documentation of Gemma 2)
    eager_attention_only: bool = False  # soft-capped scores need them materialised
    experts_key: str | None = None
    expert_intermediate_key: str = "intermediate_size"
    shared_expert: bool = False
    sparse_layout: bool = False  # decoder_sparse_step and mlp_only_layers choose the sparse layers
    windows: bool = False  # `sliding_window` is honoured
    full_attention_every: int = 0  # layers between two without a window, where layer_types does not say; 0: all have it


_LLAMA = {
    "hidden_act": "silu",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_MISTRAL = {**_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN2 = {
    **_LLAMA,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_GEMMA2 = {
    **_GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
_SMOLLM3 = {
    **_LLAMA,
    "use_sliding_window": False,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_QWEN2_MOE = {
    **_QWEN2,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "decoder_sparse_step": 1,
    "qkv_bias": True,
}
_QWEN3_MOE = {
    **_QWEN2,
    "max_window_layers": 0,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
}
_OLMO2 = {**_LLAMA, "vocab_size": 50304}
_OLMOE = {
    **_OLMO2,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}

_ALL = (
    Family("llama", _LLAMA, attention_bias_key="attention_bias", mlp_bias_key="mlp_bias"),
    Family("mistral", {**_MISTRAL, "sliding_window": 4096}, windows=True),
    Family(
        "mixtral",
        {**_MISTRAL, "num_local_experts": 8, "num_experts_per_tok": 2},
        experts_key="num_local_experts",
        windows=True,
    ),
    Family("qwen2", _QWEN2, query_bias=True, windows=True),
    Family(
        "qwen3",
        {**_QWEN2, "head_dim": 128},
        query_norm=QueryNorm.HEAD,
        attention_bias_key="attention_bias",
        windows=True,
    ),
    Family(
        "gemma",
        _GEMMA,
        attention_bias_key="attention_bias",
        tanh_gelu=True,
        float32_norm_weight=True,
        scaled_embedding=True,
        outgrows_float16=True,
    ),
    Family(
        "gemma2",
        {**_GEMMA2, "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        norm_placement=NormPlacement.SANDWICH,
        attention_bias_key="attention_bias",
        activation_key="hidden_activation",
        float32_norm_weight=True,
        scaled_embedding=True,
        scaled_logits=True,
        softcapped_logits=True,
        eager_attention_only=True,
        windows=True,
        full_attention_every=2,
        outgrows_float16=True,
    ),
    Family(
        "gemma3_text",
        {**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window": 4096},
        norm_placement=NormPlacement.SANDWICH,
        query_norm=QueryNorm.HEAD,
        attention_bias_key="attention_bias",
        activation_key="hidden_activation",
        float32_norm_weight=True,
        scaled_embedding=True,
        windows=True,
        full_attention_every=6,
        outgrows_float16=True,
    ),
    Family(
        "phi3",
        {
            **_LLAMA,
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
        },
        fused_projections=True,
        own_rotary=True,
        windows=True,
    ),
    Family(
        "granite",
        _LLAMA,
        attention_bias_key="attention_bias",
        mlp_bias_key="mlp_bias",
        scaled_embedding=True,
        scaled_logits=True,
    ),
    Family("smollm3", _SMOLLM3, attention_bias_key="attention_bias", mlp_bias_key="mlp_bias", windows=True),
    Family(
        "olmo2",
        _OLMO2,
        norm_placement=NormPlacement.POST,
        query_norm=QueryNorm.FULL,
        attention_bias_key="attention_bias",
        float32_norm_weight=True,
        own_rotary=True,
    ),
    Family(
        "qwen2_moe",
        _QWEN2_MOE,
        query_bias_key="qkv_bias",
        experts_key="num_experts",
        expert_intermediate_key="moe_intermediate_size",
        shared_expert=True,
        sparse_layout=True,
        windows=True,
    ),
    Family(
        "qwen3_moe",
        _QWEN3_MOE,
        query_norm=QueryNorm.HEAD,
        attention_bias_key="attention_bias",
        experts_key="num_experts",
        expert_intermediate_key="moe_intermediate_size",
        sparse_layout=True,
        windows=True,
    ),
    Family(
        "olmoe",
        _OLMOE,
        query_norm=QueryNorm.FULL,
        attention_bias_key="attention_bias",
        experts_key="num_experts",
    ),
)

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _ALL}
