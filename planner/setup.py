"""The vocabulary of a training run: everything that decides its memory, and everything that decides its result."""

from dataclasses import dataclass
from enum import StrEnum

from planner.objectives import SPECS, Objective


class Method(StrEnum):
    """How the base model is adapted, from the least to the most compressed."""

    FULL = "full"  # every weight is trained
    LORA = "lora"  # low-rank adapters on a 16-bit base
    QLORA = "qlora"  # low-rank adapters on a 4-bit base


class Quantization(StrEnum):
    """How the frozen base is stored."""

    NF4_DOUBLE_QUANT = "nf4_double_quant"  # bitsandbytes NF4, blocks of 64, absmax quantized again in blocks of 256


class InitLoraWeights(StrEnum):
    """Where an adapter starts, by PEFT's names."""

    DEFAULT = "default"  # A at random, B at zero (Hu et al. 2021)
    PISSA = "pissa"  # the base weight's largest singular directions (Meng et al. 2024), by PEFT's `pissa_niter_16`
    OLORA = "olora"  # the first columns of the base weight's QR decomposition (Buyukakyuz 2024)


class CheckpointSelection(StrEnum):
    """Which step's model a run publishes."""

    BEST = "best"  # that of the lowest validation loss; the last one's where nothing is evaluated
    LAST = "last"


class LRScheduler(StrEnum):
    """How the learning rate moves, by transformers' names (`TrainingArguments.lr_scheduler_type`)."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"  # without warmup
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"  # with `min_lr_rate` 0.1


# Examples laid end to end, packed or not, attention within each by torch's flash attention for variable lengths
# (varlen_attn).
VARLEN_FLASH = "varlen_flash"


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that decides the memory of a run. Rank, alpha, targets and adapter dtype are None for `full`."""

    method: Method
    quantization: Quantization | None = None
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_target_modules: tuple[str, ...] | None = None
    adapter_dtype: str | None = None  # "float32" or "bfloat16"
    lora_dropout: float = 0.0  # keeps a dropped copy of every adapted input when above zero
    use_rslora: bool = False  # scales adapters by lora_alpha / sqrt(r) instead of lora_alpha / r
    use_dora: bool = False  # trains the length of every row of an adapted weight apart from its direction
    init_lora_weights: InitLoraWeights = InitLoraWeights.DEFAULT
    modules_to_save: tuple[str, ...] | None = None  # embed_tokens, lm_head: trained whole, beside the adapters
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_length: int = 2048  # tokens
    packing: bool = False
    gradient_checkpointing: bool = False
    attn_implementation: str = "sdpa"  # "eager", "sdpa", "varlen_flash" or "flash_attention_2"
    fused_norms: bool = False  # RMSNorm in one kernel that keeps its 16-bit input; on CUDA
    fused_rotary: bool = False  # rotary embedding by Liger's kernel, in place; on CUDA, and not in compiled layers
    fused_activation: bool = False  # the same of the gated MLP's activation, which keeps no output of its own
    optimizer: str = "adamw_torch_fused"
    torch_compile: bool = False  # decoder layers through torch.compile, on CUDA; estimated as if they were not
    dtype: str = "bfloat16"
    objective: Objective = Objective.SUPERVISED

    @property
    def micro_sequences(self) -> int:
        """Rows of token ids that one forward pass takes."""
        return self.per_device_train_batch_size * SPECS[self.objective].sequences_per_example

    @property
    def effective_batch_size(self) -> int:
        """Rows per optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def unpacked_attention(self) -> str:
        """transformers' name of the attention that rows of one example take: generation, and the proof of an export."""
        return "sdpa" if self.attn_implementation == VARLEN_FLASH else self.attn_implementation


@dataclass(frozen=True)
class Hyperparameters:
    """What decides the result but not the memory. The effective batch size lives in `TrainingSetup`."""

    n_epochs: int
    learning_rate: float  # peak, reached at the end of warmup
    warmup_ratio: float = 0.03  # of all optimizer steps
    lr_scheduler_type: LRScheduler = LRScheduler.COSINE
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    learning_rate_multiplier: float = 1.0  # what `learning_rate` is of the planner's own, as OpenAI's clients name it
    held_out_rows: int = 0  # of the training file, evaluated and not trained; none where a validation file is given
    checkpoint_selection: CheckpointSelection = CheckpointSelection.BEST
    early_stopping_patience: int | None = None  # evaluations in a row without a lower validation loss; None: no stop
