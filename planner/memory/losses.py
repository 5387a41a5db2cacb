"""The loss phase: from the last hidden state to the loss and the first step back."""

from dataclasses import dataclass

from planner import constants as c
from planner.memory.adapters import trained_width, trains_head
from planner.memory.decoder import DTYPE_BYTES, FLOAT32_BYTES
from planner.memory.step_profile import StepProfile
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup


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
    """Rows of logits that our own loss (worker/training/model/cross_entropy.py) holds at a time.

    A GPU's products read the whole projection for each chunk and want hundreds of rows, in whole tiles, to be bound by
    arithmetic; a CPU's want what fits its memory's pace.
    """
    if not on_cuda:
        return max(c.LOSS_CHUNK_MINIMUM, c.LOSS_CHUNK_BYTES // (vocabulary * FLOAT32_BYTES))
    rows = c.CUDA_LOSS_CHUNK_BYTES // (vocabulary * FLOAT32_BYTES)
    tiles = rows // c.CUDA_LOSS_CHUNK_MULTIPLE * c.CUDA_LOSS_CHUNK_MULTIPLE
    return min(c.CUDA_LOSS_CHUNK_MAXIMUM, max(c.CUDA_LOSS_CHUNK_MINIMUM, tiles))


def final_hidden_bytes(spec: ModelSpec, setup: TrainingSetup, step: StepProfile, tokens: int) -> int:
    """Bytes that the final norm keeps, and its output."""
    narrow = tokens * spec.hidden_size * DTYPE_BYTES[setup.dtype]
    if step.fused_norm or step.compiled:
        return 2 * narrow
    wide = tokens * spec.hidden_size * FLOAT32_BYTES
    if setup.method is not Method.FULL:
        return wide + narrow
    normalized = wide if spec.family.float32_norm_weight else narrow  # kept for the gradient of the norm's weight
    return wide + normalized + narrow


def loss_phase(spec: ModelSpec, setup: TrainingSetup, step: StepProfile) -> LossPhase:
    """Our loss (worker/training/model/cross_entropy.py) and the final norm, of one micro-batch: the hidden states of
    the trained tokens, at worst all of them, and their gradient; chunks of logits; the projection's gradient where it
    is trained. Backward scales both gradients into new tensors.
    """
    width = DTYPE_BYTES[setup.dtype]
    tokens = setup.micro_sequences * setup.max_length
    norm = final_hidden_bytes(spec, setup, step, tokens)
    selected = tokens * spec.hidden_size * width
    rows = min(tokens, chunk_rows(spec.vocab_size, on_cuda=not step.is_varlen))
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
