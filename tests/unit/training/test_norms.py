"""The fused RMSNorm is Llama's, for the families that the planner counts it for, and a run does without where not."""

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from planner.families import FAMILIES
from planner.setup import Method
from tests.unit.training.runs import setup_for
from tests.unit.training.test_attention import Heard
from worker.training.norms import fuse_norms, norm_problem, proved_norms

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("trained", [False, True])
def test_output_and_gradients_are_those_of_the_models_own_code(
    dtype: torch.dtype, tolerance: float, trained: bool
) -> None:
    torch.manual_seed(0)
    plain = LlamaRMSNorm(48).to(dtype).requires_grad_(trained)
    torch.nn.init.uniform_(plain.weight, 0.5, 2.0)
    inputs, gradient = (torch.randn(3, 7, 48).to(dtype) for _ in range(2))
    found = []
    for fused in (False, True):
        assert fuse_norms(plain) == 1 if fused else True
        leaf = inputs.clone().requires_grad_()
        output = plain(leaf)
        output.backward(gradient)
        found.append([output.detach(), leaf.grad, plain.weight.grad])
        plain.weight.grad = None
    for theirs, ours in zip(*found, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
    assert norm_problem(plain) is None


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_is_for_the_families_that_the_planner_counts_it_for(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY))
    assert bool(fuse_norms(model)) is not FAMILIES[family].float32_norm_weight


def missing(*_args: object, **_options: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available\nand a long backtrace")


def wrong(inputs: torch.Tensor, _shape: object, weight: torch.Tensor, _eps: float) -> torch.Tensor:
    return inputs * weight


@pytest.mark.parametrize(("kernel", "said"), [(missing, "no kernel image is available"), (wrong, "output differs by")])
def test_a_run_goes_on_without_a_kernel_that_fails_and_says_so(kernel: Callable[..., torch.Tensor], said: str) -> None:
    model, heard = torch.nn.Sequential(LlamaRMSNorm(32)), Heard()
    setup = setup_for(Method.LORA, fused_norms=True)
    with patch.object(functional, "rms_norm", kernel):
        assert proved_norms(model, setup, heard) == replace(setup, fused_norms=False)
    (report,) = heard.reports
    assert said in getattr(report, "message", "")
    assert "forward" not in vars(model[0])
    assert proved_norms(model, setup, heard) == setup
    assert "forward" in vars(model[0])
    assert proved_norms(model, setup_for(Method.LORA), heard).fused_norms is False
