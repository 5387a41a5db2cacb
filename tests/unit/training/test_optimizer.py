"""Variants and clipping."""

import ctypes
import subprocess
from copy import deepcopy
from pathlib import Path

import bitsandbytes.functional
import pytest
import torch
from bitsandbytes.optim.adamw import PagedAdamW8bit

from core.errors import TrainingError
from planner.setup import Hyperparameters, Method, TrainingSetup
from tests.unit.training.runs import setup_for
from worker.training.loop.optimizer import build_optimizer, load_optimizer
from worker.training.model.gradients import (
    NamedParameters,
    NoGradientError,
    clip_gradients,
    gradient_norm,
    learning,
    require_gradients,
)


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


MANAGED = r"""
#include <stdlib.h>
#include <string.h>
void *cget_managed_ptr(size_t bytes) { return malloc(bytes); }
void cfill_fp32(float *a, float *b, float value, long n) { for (long i = 0; i < n; i++) a[i] = value; }
void cfill_uint8(unsigned char *a, unsigned char *b, unsigned char value, long n) { memset(a, value, n); }
"""


class Paging(PagedAdamW8bit):
    """bitsandbytes' own paged optimizer, whose states on a CPU would not be paged, as it is on a GPU."""

    def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if p.numel() < 1e5:
            return torch.zeros_like(p, dtype=dtype)
        buffer = bitsandbytes.functional.get_paged(*p.shape, dtype=dtype, device=p.device)
        self.page_mng.paged_tensors.append(buffer)
        return buffer


def stepped(optimizer: torch.optim.Optimizer, parameters: NamedParameters, steps: int) -> None:
    for step in range(steps):
        for _, parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1))
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_of_a_paged_optimizer_are_paged_again_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "managed.c").write_text(MANAGED)
    library = tmp_path / "managed.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "managed.c")], check=True)
    managed = ctypes.CDLL(str(library))
    managed.cget_managed_ptr.restype = ctypes.c_void_p
    parameters = [("large", torch.nn.Parameter(torch.ones(400, 300))), ("small", torch.nn.Parameter(torch.ones(3, 3)))]
    setup = setup_for(Method.FULL, optimizer="paged_adamw_8bit")
    first = build_optimizer(parameters, setup, Hyperparameters(1, 1e-3))
    stepped(first, parameters, 2)
    saved = deepcopy(first.state_dict())

    monkeypatch.setattr(bitsandbytes.functional.lib, "cget_managed_ptr", managed.cget_managed_ptr, raising=False)
    second = Paging([parameter for _, parameter in parameters])
    load_optimizer(second, saved)
    for (_, parameter), is_paged in zip(parameters, (True, False), strict=True):
        before, after = first.state[parameter], second.state[parameter]
        assert before.keys() == after.keys()
        for name in ("state1", "state2"):
            assert getattr(after[name], "is_paged", False) is is_paged
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
            assert after[name].dtype == before[name].dtype
    assert len(second.page_mng.paged_tensors) >= 2


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_a_loaded_optimizer_goes_on_where_the_saved_one_stood(name: str) -> None:
    setup = setup_for(Method.FULL, optimizer=name)
    weights = []
    for resumed in (False, True):
        parameters = [("weight", torch.nn.Parameter(torch.linspace(-1, 1, 120_000).view(400, 300)))]
        optimizer = build_optimizer(parameters, setup, Hyperparameters(1, 1e-3))
        stepped(optimizer, parameters, 2)
        if resumed:
            saved = deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(parameters, setup, Hyperparameters(1, 1e-3))
            load_optimizer(optimizer, saved)
        stepped(optimizer, parameters, 1)
        weights.append(parameters[0][1].detach())
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_a_trained_tensor_without_a_gradient_is_an_error_that_names_it() -> None:
    names = ("q.lora_A", "q.lora_B", "mlp.experts.3.up.lora_A")
    parameters = [(name, torch.nn.Parameter(torch.ones(2))) for name in names]
    parameters[0][1].grad = torch.zeros(2)  # as LoRA's A has at its first step, where B is zero
    with pytest.raises(
        NoGradientError, match=r"1 of 3 trained tensors got no gradient, q\.lora_B among them"
    ) as caught:
        require_gradients(parameters)
    assert caught.value.code == "no_gradient"
    parameters[1][1].grad = torch.ones(2)
    require_gradients(parameters)  # no token need have been sent to the expert
    assert learning(parameters) == {"q.lora_B"}
    assert learning([("none", torch.nn.Parameter(torch.ones(2)))]) == frozenset()
