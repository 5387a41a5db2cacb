"""The loss phase: from the last hidden state to the loss and the first step back."""

from dataclasses import dataclass

from planner import constants as c
from planner.adapters import trained_width, trains_head
from planner.decoder import DTYPE_BYTES, FLOAT32_BYTES
from planner.model_spec import ModelSpec
from planner.setup import Loss, Method, TrainingSetup
from planner.stacks import StackProfile


@dataclass(frozen=True)
class LossPhase:
    """Bytes alive during the loss on top of what the layers keep."""

    forward_bytes: int
    backward_bytes: int
    projection_bytes: int  # the gradient of the logits while the output projection runs backward
    evaluation_bytes: int = 0  # forward without gradients; of our own loss only

    @property
    def peak_bytes(self) -> int:
        """The larger of the two directions."""
        return max(self.forward_bytes, self.backward_bytes)


def chunk_rows(vocabulary: int, *, on_cuda: bool) -> int:
    """Rows of logits that our own loss (worker/training/loss.py) holds at a time.

    A GPU's products read the whole projection for each chunk and want hundreds of rows, in whole tiles, to be bound by
    arithmetic; a CPU's want what fits its memory's pace.
    """
    if not on_cuda:
        return max(c.LOSS_CHUNK_MINIMUM, c.LOSS_CHUNK_BYTES // (vocabulary * FLOAT32_BYTES))
    rows = c.CUDA_LOSS_CHUNK_BYTES // (vocabulary * FLOAT32_BYTES)
    tiles = rows // c.CUDA_LOSS_CHUNK_MULTIPLE * c.CUDA_LOSS_CHUNK_MULTIPLE
    return min(c.CUDA_LOSS_CHUNK_MAXIMUM, max(c.CUDA_LOSS_CHUNK_MINIMUM, tiles))


def loss_phase(spec: ModelSpec, setup: TrainingSetup, stack: StackProfile) -> LossPhase:
    """Bytes of the final norm, the output projection and the cross entropy of one micro-batch."""
    tokens = setup.per_device_train_batch_size * setup.max_length
    hidden = _final_hidden_bytes(spec, setup, stack, tokens)
    own = setup.stack.library == "tunewright"
    if setup.loss is Loss.FUSED_LINEAR_CE:
        return _own_fused_linear(spec, setup, stack, hidden, tokens) if own else _liger(spec, setup, hidden, tokens)
    if setup.loss is Loss.CHUNKED_CE:
        logits = _chunked(spec, setup, stack, tokens)
        return LossPhase(hidden + logits, hidden + logits, hidden + logits)
    forward, backward = _materialised(spec, setup, stack, tokens)
    narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
    return LossPhase(hidden + forward, hidden + backward, hidden + narrow)


def _final_hidden_bytes(spec: ModelSpec, setup: TrainingSetup, stack: StackProfile, tokens: int) -> int:
    """What the final norm keeps, and its output."""
    narrow = tokens * spec.hidden_size * DTYPE_BYTES[setup.dtype]
    if stack.fused_norm or stack.compiled:
        return 2 * narrow
    wide = tokens * spec.hidden_size * FLOAT32_BYTES
    if setup.method is not Method.FULL:
        return wide + narrow
    normalized = wide if spec.family.float32_norm_weight else narrow  # kept for the gradient of the norm's weight
    return wide + normalized + narrow


def _materialised(spec: ModelSpec, setup: TrainingSetup, stack: StackProfile, tokens: int) -> tuple[int, int]:
    """Full logits. Forward: float32 logits, their shifted copy, the log-softmax. Backward: the log-softmax, its
    incoming and its outgoing gradient (torch nll_loss_backward, _log_softmax_backward_data).
    """
    narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
    wide = tokens * spec.vocab_size * FLOAT32_BYTES
    shifted = wide * (setup.max_length - 1) // setup.max_length if stack.copies_shifted_logits else 0
    forward = wide + shifted + (narrow if stack.keeps_bf16_logits else 0)
    if spec.family.scaled_logits and stack.keeps_bf16_logits:
        forward += 0 if spec.model_type == "granite" else narrow  # tanh keeps its output
    if setup.loss is Loss.FUSED_CE:  # the kernel writes the gradient over the logits
        return forward, wide + shifted
    if stack.compiled:  # the compiled cross entropy keeps the float32 logits and recomputes the softmax
        return wide + narrow, 2 * wide
    log_softmax = shifted or wide
    return forward + log_softmax, 3 * log_softmax


def _chunked(spec: ModelSpec, setup: TrainingSetup, stack: StackProfile, tokens: int) -> int:
    """16-bit logits whole; the cross entropy of one chunk at a time, its float32 inside the compiled kernel."""
    narrow = tokens * spec.vocab_size * DTYPE_BYTES[setup.dtype]
    if stack.compiled:
        return narrow + narrow // c.TORCHTUNE_LOSS_CHUNKS
    wide = tokens * spec.vocab_size * FLOAT32_BYTES
    return narrow + wide + 2 * wide // c.TORCHTUNE_LOSS_CHUNKS


def _own_fused_linear(spec: ModelSpec, setup: TrainingSetup, stack: StackProfile, norm: int, tokens: int) -> LossPhase:
    """Our loss (worker/training/loss.py): the hidden states of the trained tokens, at worst all of them, and their
    gradient; chunks of logits; the projection's gradient where it is trained. Backward scales
    both gradients into new tensors.
    """
    width = DTYPE_BYTES[setup.dtype]
    selected = tokens * spec.hidden_size * width
    rows = min(tokens, chunk_rows(spec.vocab_size, on_cuda=not stack.cuts_rows))
    # A chunk and its softmax; a soft cap has one temporary more.
    chunks = (3 if spec.family.softcapped_logits else 2) * rows * spec.vocab_size * FLOAT32_BYTES
    weight = spec.embedding_parameters * width if trains_head(spec, setup) else 0
    # A projection beside the base is trained in the adapters' dtype: a copy in the base's runs forward, whose gradient
    # is then copied back.
    own = spec.embedding_parameters * trained_width(setup)
    copy = weight if own != spec.embedding_parameters * width else 0
    return LossPhase(
        forward_bytes=norm + 2 * selected + weight + copy + chunks,
        backward_bytes=norm + 2 * selected + 2 * weight,
        projection_bytes=norm + selected + copy,
        evaluation_bytes=2 * selected + copy + chunks,
    )


def _liger(spec: ModelSpec, setup: TrainingSetup, norm: int, tokens: int) -> LossPhase:
    """Liger's kernel: chunks of logits about as large as the hidden state (fused_linear_cross_entropy.py)."""
    width = DTYPE_BYTES[setup.dtype]
    parts = -(-spec.vocab_size // spec.hidden_size)
    rows = -(-tokens // parts)
    chunk = min(tokens, 1 << (rows - 1).bit_length())
    weight = spec.embedding_parameters * width if setup.method is Method.FULL else 0
    held = chunk * spec.vocab_size * (width + FLOAT32_BYTES) + tokens * spec.hidden_size * width + weight
    return LossPhase(norm + held, norm + held, 0)
