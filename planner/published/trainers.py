"""Trainers that memory was published of, and what each one's code keeps: they check the planner's arithmetic."""

from dataclasses import dataclass
from enum import StrEnum

from planner import constants as c
from planner.errors import InvalidSetupError
from planner.memory.decoder import DTYPE_BYTES
from planner.memory.losses import LossPhase, final_hidden_bytes
from planner.memory.step_profile import AdapterCompute, StepProfile
from planner.model.spec import ModelSpec
from planner.published.losses import chunked, liger, materialised
from planner.setup import Method, TrainingSetup


class Loss(StrEnum):
    """How the cross entropy over the vocabulary is computed."""

    EAGER = "eager"  # full logits with float32 copies
    FUSED_CE = "fused_ce"  # one fused kernel over full logits
    CHUNKED_CE = "chunked_ce"  # logits whole, cross entropy in chunks
    FUSED_LINEAR_CE = "fused_linear_ce"  # logits never materialised: projection and cross entropy chunk by chunk


# modeling_mistral.py, modeling_mixtral.py and modeling_qwen2.py of 4.45.2 call repeat_kv before flash attention;
# modeling_llama.py and modeling_granite.py of 4.45.2 and every family of 4.48.1 do not.
_REPEATING_IN_4_45 = frozenset({"mistral", "mixtral", "qwen2"})


@dataclass(frozen=True)
class PublishedTrainer:
    """A library's loop, as a published run was made with it; versions differ in the copies of logits that they hold."""

    library: str
    version: str | None = None
    loss: Loss = Loss.FUSED_LINEAR_CE
    compiled: bool | None = None  # through torch.compile; None: as the library's published runs are
    is_ours = False
    slack_share = c.CUDA_SLACK_SHARE

    def profile(self, setup: TrainingSetup, model_type: str, _on_cpu: bool, /) -> StepProfile:
        """What its step keeps. Raises InvalidSetupError for a library that is not modelled."""
        if self.library == "transformers":
            return _transformers(self, setup, model_type)
        if self.library == "torchtune":
            return _torchtune(self, setup)
        raise InvalidSetupError(
            f"The stack {self.library!r} is not modelled; known: tunewright, transformers, torchtune."
        )

    def loss_phase(self, spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> LossPhase:
        """Bytes of the final norm, the output projection and the cross entropy of one micro-batch."""
        tokens = setup.per_device_train_batch_size * setup.max_length
        hidden = final_hidden_bytes(spec, setup, step, tokens)
        if self.loss is Loss.FUSED_LINEAR_CE:
            return liger(spec, setup, hidden, tokens)
        if self.loss is Loss.CHUNKED_CE:
            logits = chunked(spec, setup, step, tokens)
            return LossPhase(hidden + logits, hidden + logits, hidden + logits)
        is_fused = self.loss is Loss.FUSED_CE
        forward, backward = materialised(spec, setup, step, tokens, is_fused=is_fused)
        narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
        return LossPhase(hidden + forward, hidden + backward, hidden + narrow)

    @property
    def version_number(self) -> tuple[int, ...]:
        """The version by its parts. Raises InvalidSetupError for one that is no number."""
        if self.version is None:
            return (4, 48, 1)
        try:
            return tuple(int(part) for part in self.version.split(".")[:3])
        except ValueError as error:
            raise InvalidSetupError(f"The version {self.version!r} of {self.library} is not a number.") from error


def _transformers(trainer: PublishedTrainer, setup: TrainingSetup, model_type: str) -> StepProfile:
    """HF Trainer with PEFT; fused losses there come with the fused norm, rotary and LoRA kernels (fms foak)."""
    recent = trainer.version_number >= (4, 46)  # the loss moved into loss_utils.py, logits.float() into the loss
    kernels = trainer.loss is not Loss.EAGER
    quantized = setup.method is Method.QLORA
    return StepProfile(
        AdapterCompute.UNSLOTH if kernels and quantized else AdapterCompute.AUTOCAST,
        fused_norm=kernels,
        repeats_key_values=not recent and model_type in _REPEATING_IN_4_45,
        lora_dropout=setup.lora_dropout or c.PUBLISHED_LORA_DROPOUT,
        keeps_bf16_logits=recent,
        copies_shifted_logits=True,
        keeps_embedding_output=setup.method is not Method.FULL,
        sequential_experts=True,
        autocast_weight_cache=quantized and not kernels,
    )


def _torchtune(trainer: PublishedTrainer, setup: TrainingSetup) -> StepProfile:
    return StepProfile(
        AdapterCompute.CAST,
        lora_dropout=setup.lora_dropout,
        repeats_key_values=True,
        compiled=trainer.compiled is not False,  # its README's figures are of compiled layers and losses
        fused_optimizer=True,  # recipes/configs/**/*_single_device.yaml: fused: True
        materialises_attention_mask=True,
    )
