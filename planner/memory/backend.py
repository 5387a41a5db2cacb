"""The trainer whose step is estimated: ours, which plans promise, or a published one (planner/published)."""

from dataclasses import dataclass
from typing import Protocol

from planner import constants as c
from planner.memory.losses import LossPhase, loss_phase
from planner.memory.step_profile import AdapterCompute, StepProfile
from planner.model.spec import ModelSpec
from planner.setup import TrainingSetup


class Backend(Protocol):
    """A trainer, as far as its memory differs from another's."""

    @property
    def is_ours(self) -> bool:
        """Whether its evaluation, the proof of its export and how it casts factors are known."""
        ...

    @property
    def slack_share(self) -> float:
        """What its allocator holds and does not use, of the bytes above those that stay."""
        ...

    def profile(self, setup: TrainingSetup, model_type: str, on_cpu: bool, /) -> StepProfile:
        """What its step keeps. Raises InvalidSetupError for what is not modelled."""
        ...

    def loss_phase(self, spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> LossPhase:
        """Bytes of the final norm, the output projection and the cross entropy of one micro-batch."""
        ...


@dataclass(frozen=True)
class Tunewright:
    """Our own loop over transformers' modelling code (worker/training)."""

    is_ours = True
    slack_share = c.CUDA_EXPANDABLE_SLACK_SHARE

    def profile(self, setup: TrainingSetup, _model_type: str, on_cpu: bool, /) -> StepProfile:
        """What a step keeps."""
        # Examples of a packed row are told apart by a mask, which rules grouped key heads out, or by VARLEN_FLASH.
        masked = setup.packing and setup.attn_implementation == "sdpa" and not on_cpu
        return StepProfile(
            AdapterCompute.FUSED,
            fused_norm=setup.fused_norms,
            fused_rotary=setup.fused_rotary,
            fused_activation=setup.fused_activation,
            lora_dropout=setup.lora_dropout,
            repeats_key_values=masked,
            materialises_attention_mask=masked,
            masks_windows=setup.attn_implementation == "sdpa" and not on_cpu,
            is_varlen=on_cpu,
        )

    def loss_phase(self, spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> LossPhase:
        """Never the logits of all tokens (worker/training/model/cross_entropy.py)."""
        return loss_phase(spec, setup, step)


TUNEWRIGHT = Tunewright()
