"""The losses of published trainers, all but one with the logits of all tokens."""

from planner import constants as c
from planner.memory.decoder import DTYPE_BYTES, FLOAT32_BYTES
from planner.memory.losses import LossPhase
from planner.memory.step_profile import StepProfile
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup


def materialised(
    spec: ModelSpec, setup: TrainingSetup, step: StepProfile, tokens: int, *, is_fused: bool
) -> tuple[int, int]:
    """Full logits. Forward: float32 logits, their shifted copy, the log-softmax. Backward: the log-softmax, its
    incoming and its outgoing gradient (torch nll_loss_backward, _log_softmax_backward_data).
    """
    narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
    wide = tokens * spec.vocab_size * FLOAT32_BYTES
    shifted = wide * (setup.max_length - 1) // setup.max_length if step.copies_shifted_logits else 0
    forward = wide + shifted + (narrow if step.keeps_bf16_logits else 0)
    if spec.family.scaled_logits and step.keeps_bf16_logits:
        forward += 0 if spec.model_type == "granite" else narrow  # tanh keeps its output
    if is_fused:  # the kernel writes the gradient over the logits
        return forward, wide + shifted
    if step.compiled:  # the compiled cross entropy keeps the float32 logits and recomputes the softmax
        return wide + narrow, 2 * wide
    log_softmax = shifted or wide
    return forward + log_softmax, 3 * log_softmax


def chunked(spec: ModelSpec, setup: TrainingSetup, step: StepProfile, tokens: int) -> int:
    """16-bit logits whole; the cross entropy of one chunk at a time, its float32 inside the compiled kernel."""
    narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
    if step.compiled:
        return narrow + narrow // c.TORCHTUNE_LOSS_CHUNKS
    wide = tokens * spec.vocab_size * FLOAT32_BYTES
    return narrow + wide + 2 * wide // c.TORCHTUNE_LOSS_CHUNKS


def liger(spec: ModelSpec, setup: TrainingSetup, norm: int, tokens: int) -> LossPhase:
    """Liger's kernel: chunks of logits about as large as the hidden state (fused_linear_cross_entropy.py)."""
    width = DTYPE_BYTES[setup.dtype]
    parts = -(-spec.vocab_size // spec.hidden_size)
    rows = -(-tokens // parts)
    chunk = min(tokens, 1 << (rows - 1).bit_length())
    weight = spec.embedding_parameters * width if setup.method is Method.FULL else 0
    held = chunk * spec.vocab_size * (width + FLOAT32_BYTES) + tokens * spec.hidden_size * width + weight
    return LossPhase(norm + held, norm + held, 0)
