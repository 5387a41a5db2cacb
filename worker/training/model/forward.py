"""One micro-batch through the decoder and the loss."""

import torch

from worker.training.data.batches import MicroBatch
from worker.training.model.attention import FINISHED_MASK
from worker.training.model.cross_entropy import linear_cross_entropy
from worker.training.model.loading import LoadedModel


def score(loaded: LoadedModel, batch: MicroBatch, normaliser: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of the scored tokens over `normaliser`, and how many were predicted right."""
    arguments: dict[str, object] = {"position_ids": batch.position_ids, "use_cache": False}
    if batch.bounds is not None and loaded.is_varlen:
        arguments |= {"attention_mask": FINISHED_MASK, "bounds": batch.bounds}
    hidden = loaded.backbone(input_ids=batch.input_ids, **arguments).last_hidden_state  # [rows, length, hidden]
    predicting = hidden.flatten(0, 1).index_select(0, batch.predicting)  # [trained, hidden]
    return linear_cross_entropy(predicting, loaded.head, batch.labels, normaliser, loaded.transform)
