"""What the code of a trainer's step keeps, as far as trainers differ."""

from dataclasses import dataclass
from enum import StrEnum


class AdapterCompute(StrEnum):
    """What a LoRA projection keeps of its input."""

    CAST = "cast"  # PEFT without autocast: the input cast to the adapter's dtype
    AUTOCAST = "autocast"  # float32 adapters under bf16 autocast: the (dropped) input in bf16
    FUSED = "fused"  # our own autograd function: the input (the dropped one with its mask) and A(x)
    UNSLOTH = "unsloth"  # unsloth's autograd functions: the input, and the dropped input of each projection


@dataclass(frozen=True)
class StepProfile:
    """What a trainer's step keeps, as far as trainers differ."""

    adapter_compute: AdapterCompute
    fused_norm: bool = False  # the norm keeps its bf16 input instead of a float32 copy
    fused_rotary: bool = False  # the rotary embedding writes over queries and keys, and over their gradients
    fused_activation: bool = False  # the gated activation keeps gate and up alone, and writes their gradients over them
    repeats_key_values: bool = False  # key/value heads are copied up to the number of query heads before attention
    lora_dropout: float = 0.0
    keeps_bf16_logits: bool = False  # the 16-bit logits outlive their float32 copy
    copies_shifted_logits: bool = False  # logits[:-1] is made contiguous in float32
    materialises_attention_mask: bool = False  # a boolean mask becomes a bf16 one, kept by each layer
    masks_windows: bool = False  # so it does for rows as long as the model's sliding window, in layers that have one
    compiled: bool = False  # torch.compile fuses norm, rotary embedding, activation and float32 casts
    keeps_embedding_output: bool = False  # PEFT's enable_input_require_grads makes it a leaf that autograd holds
    fused_optimizer: bool = False  # AdamW's fused kernel even where the optimizer's name does not say so
    sequential_experts: bool = False  # experts run one after another, so only one expert's gradients are alive
    is_varlen: bool = False  # attention runs example by example: short ones through plain products
    autocast_weight_cache: bool = False  # bf16 copies of float32 adapters live through the forward pass
