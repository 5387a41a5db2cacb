"""Variants and clipping."""

import pytest
import torch

from core.errors import TrainingError
from planner.setup import Hyperparameters, Method, TrainingSetup
from worker.training.optimizer import build_optimizer, clip_gradients, gradient_norm


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    "name", ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "paged_adamw_32bit"]
)
def test_every_variant_goes_downhill(name: str) -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(64, 128))
    named = [("weight", parameter)]
    optimizer = build_optimizer(named, TrainingSetup(Method.FULL, optimizer=name), Hyperparameters(1, 0.05))
    before = float(parameter.detach().square().sum())
    for _ in range(5):
        parameter.square().sum().backward()
        clip_gradients(named, 1.0, gradient_norm(named))
        assert float(gradient_norm(named)) <= 1.0 + 1e-4
        optimizer.step()
        optimizer.zero_grad()
    assert float(parameter.detach().square().sum()) < 0.9 * before


def test_weight_decay_spares_norms_and_biases() -> None:
    named = [("weight", torch.nn.Parameter(torch.ones(4, 4))), ("norm", torch.nn.Parameter(torch.ones(4)))]
    hyperparameters = Hyperparameters(1, 0.1, weight_decay=0.5)
    optimizer = build_optimizer(named, TrainingSetup(Method.FULL), hyperparameters)
    for _, parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert float(named[0][1].detach().mean()) < 1.0
    assert float(named[1][1].detach().mean()) == 1.0


def test_what_no_plan_offers_is_refused() -> None:
    with pytest.raises(TrainingError, match="not known"):
        build_optimizer([], TrainingSetup(Method.FULL, optimizer="adam_of_tomorrow"), Hyperparameters(1, 0.1))
