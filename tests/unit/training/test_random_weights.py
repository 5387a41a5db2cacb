"""The GPU benchmark's models train: random weights of every kind, on the device that is here."""

from typing import Any

import pytest
import torch

from bench.random_weights import load_random
from planner.setup import Method, TrainingSetup
from tests.unit.training.runs import setup_for
from worker.training.data.batches import choose_layout
from worker.training.model.forward import score
from worker.training.objectives.supervised.objective import Supervised

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_random_models_train(family: str, method: Method) -> None:
    config = SMALL | {"model_type": family} | ({"num_local_experts": 4} if family == "mixtral" else {})
    setup: TrainingSetup = setup_for(method, max_length=32)
    torch.manual_seed(0)
    loaded = load_random(config, setup, CPU)
    assert not any(parameter.is_meta for parameter in loaded.model.parameters())
    assert not any(buffer.is_meta for buffer in loaded.model.buffers())
    batch = Supervised.full_micro_batch(setup, choose_layout(is_varlen=loaded.is_varlen))
    loss, _ = score(loaded, batch, batch.scored)
    loss.backward()
    assert loss.item() == pytest.approx(torch.log(torch.tensor(128.0)).item(), rel=0.1)
    assert sum(parameter.grad is not None for _, parameter in loaded.parameters) == len(loaded.parameters)
