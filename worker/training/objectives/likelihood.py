"""The likelihood of sequences under a model, without gradients: evaluation, and the proof of an export."""

from dataclasses import dataclass

import torch

from worker.training.data.batches import choose_layout, collate
from worker.training.data.packing import Row
from worker.training.data.tokenized import TokenizedSet
from worker.training.memory import MEMORY_ERRORS, MemoryWatch, is_out_of_memory, release
from worker.training.model.forward import score
from worker.training.model.loading import LoadedModel
from worker.training.stopping import StopSignal


@dataclass(frozen=True)
class Likelihood:
    """Mean negative log likelihood in nats and share of right predictions, per scored token."""

    loss: float
    accuracy: float


@torch.compiler.set_stance("force_eager")  # no training step: compiled layers would be compiled anew for it
def likelihood(
    loaded: LoadedModel, data: TokenizedSet, batch_size: int, watch: MemoryWatch, stop: StopSignal
) -> Likelihood | None:
    """Score every example, in batches that shrink where memory runs out; None for a set without scored tokens.

    Raises the out-of-memory error of the device where not even one row fits.
    """
    layout = choose_layout(is_varlen=loaded.is_varlen)
    order = sorted(range(len(data)), key=lambda example: -int(data.lengths[example]))
    was_training = loaded.model.training
    loaded.model.eval()
    total_loss = torch.zeros((), dtype=torch.float64, device=loaded.device)
    correct = torch.zeros((), dtype=torch.int64, device=loaded.device)  # both read once, at the end
    scored = start = 0
    while start < len(order):
        stop.check()
        rows: list[Row] = [(example,) for example in order[start : start + batch_size]]
        try:
            batch = collate(data, rows, layout).to(loaded.device)
            with torch.inference_mode():
                loss, hits = score(loaded, batch, normaliser=1.0)
            watch.check()
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
            release()
            continue
        total_loss += loss.double()
        correct += hits
        scored += batch.scored
        start += len(rows)
    loaded.model.train(was_training)
    return Likelihood(float(total_loss) / scored, int(correct) / scored) if scored else None
