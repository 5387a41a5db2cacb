"""Libraries whose training step is modelled, and what each one's code keeps.

Our own trainer is what the planner promises; the others are here because published measurements were made with them.
"""

from dataclasses import dataclass
from enum import StrEnum

from planner.constants import PUBLISHED_LORA_DROPOUT
from planner.errors import InvalidSetupError
from planner.setup import Loss, Method, Stack, TrainingSetup


class AdapterCompute(StrEnum):
    """What a LoRA projection keeps of its input."""

    CAST = "cast"  # PEFT without autocast: the input cast to the adapter's dtype
    AUTOCAST = "autocast"  # float32 adapters under bf16 autocast: the (dropped) input in bf16
    FUSED = "fused"  # our own autograd function: the input (the dropped one with its mask) and A(x)
    UNSLOTH = "unsloth"  # unsloth's autograd functions: the input, and the dropped input of each projection


@dataclass(frozen=True)
class StackProfile:
    """What one library's step keeps, as far as versions differ."""

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
    cuts_rows: bool = False  # attention runs example by example: short ones through plain products
    autocast_weight_cache: bool = False  # bf16 copies of float32 adapters live through the forward pass


# modeling_mistral.py, modeling_mixtral.py and modeling_qwen2.py of 4.45.2 call repeat_kv before flash attention;
# modeling_llama.py and modeling_granite.py of 4.45.2 and every family of 4.48.1 do not.
_REPEATING_IN_4_45 = frozenset({"mistral", "mixtral", "qwen2"})


def profile(setup: TrainingSetup, model_type: str, *, on_cpu: bool = False) -> StackProfile:
    """The profile of `setup.stack`. Raises InvalidSetupError for a library that is not modelled."""
    library = setup.stack.library
    if library == "tunewright":
        return _tunewright(setup, on_cpu)
    if library == "transformers":
        return _transformers(setup, model_type)
    if library == "torchtune":
        return _torchtune(setup)
    raise InvalidSetupError(f"The stack {library!r} is not modelled; known: tunewright, transformers, torchtune.")


def _tunewright(setup: TrainingSetup, on_cpu: bool) -> StackProfile:
    """Our own loop over transformers' modelling code (worker/training)."""
    # Examples of a packed row are told apart by a mask, which rules grouped key heads out, or by VARLEN_FLASH.
    masked = setup.packing and setup.attn_implementation == "sdpa" and not on_cpu
    return StackProfile(
        AdapterCompute.FUSED,
        fused_norm=setup.fused_norms,
        fused_rotary=setup.fused_rotary,
        fused_activation=setup.fused_activation,
        lora_dropout=setup.lora_dropout,
        repeats_key_values=masked,
        materialises_attention_mask=masked,
        masks_windows=setup.attn_implementation == "sdpa" and not on_cpu,
        cuts_rows=on_cpu,
    )


def _transformers(setup: TrainingSetup, model_type: str) -> StackProfile:
    """HF Trainer with PEFT; fused losses there come with the fused norm, rotary and LoRA kernels (fms foak)."""
    recent = _version(setup.stack) >= (4, 46)  # the loss moved into loss_utils.py, logits.float() into the loss
    kernels = setup.loss is not Loss.EAGER
    quantized = setup.method is Method.QLORA
    return StackProfile(
        AdapterCompute.UNSLOTH if kernels and quantized else AdapterCompute.AUTOCAST,
        fused_norm=kernels,
        repeats_key_values=not recent and model_type in _REPEATING_IN_4_45,
        lora_dropout=setup.lora_dropout or PUBLISHED_LORA_DROPOUT,
        keeps_bf16_logits=recent,
        copies_shifted_logits=True,
        keeps_embedding_output=setup.method is not Method.FULL,
        sequential_experts=True,
        autocast_weight_cache=quantized and not kernels,
    )


def _torchtune(setup: TrainingSetup) -> StackProfile:
    return StackProfile(
        AdapterCompute.CAST,
        lora_dropout=setup.lora_dropout,
        repeats_key_values=True,
        compiled=setup.stack.compiled is not False,  # its README's figures are of compiled layers and losses
        fused_optimizer=True,  # recipes/configs/**/*_single_device.yaml: fused: True
        materialises_attention_mask=True,
    )


def _version(stack: Stack) -> tuple[int, ...]:
    if stack.version is None:
        return (4, 48, 1)
    try:
        return tuple(int(part) for part in stack.version.split(".")[:3])
    except ValueError as error:
        raise InvalidSetupError(f"The version {stack.version!r} of {stack.library} is not a number.") from error
