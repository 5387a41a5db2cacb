"""Fused kernels compute what the models' own code does, for the families that the planner counts them for; a run does
without one that fails."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from planner.devices import parse_gpu
from planner.kernels import with_kernels
from planner.model.families import FAMILIES
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup
from tests.unit.training.liger_in_torch import liger_in_torch
from tests.unit.training.runs import setup_for
from tests.unit.training.test_attention import Heard
from worker.training.model.fused import KERNELS, fuse, proved_kernels
from worker.training.model.loading import LoadedModel, make_trainable

ROOT = Path(__file__).parents[3]
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SWITCHES = tuple(kernel.switch for kernel in KERNELS)
GPU = replace(parse_gpu("RTX 4090"), has_liger=True)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def planned(family: str, method: Method = Method.LORA, **changes: Any) -> TrainingSetup:
    """A setup with the kernels that a plan has for this family on a GPU with Liger's."""
    spec = ModelSpec.from_config({"model_type": family, **TINY})
    return replace(with_kernels(setup_for(method), spec, GPU), **{"dtype": "float32"} | changes)


def loaded_for(family: str, setup: TrainingSetup) -> LoadedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, attn_implementation="eager" if family == "gemma2" else "sdpa", **TINY)
    base = AutoModelForCausalLM.from_config(config).to(getattr(torch, setup.dtype))
    for name, parameter in base.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        # So that it matters where attention looks and what passes a gate, as in a model that has learned something.
        if name.endswith(("_proj.weight", "lm_head.weight")):
            parameter.data *= 10
    return make_trainable(base, setup, torch.device("cpu"))


def switches_of(setup: TrainingSetup) -> list[str]:
    return [switch for switch in SWITCHES if getattr(setup, switch)]


@pytest.mark.parametrize(
    ("family", "method"), [*((family, Method.LORA) for family in sorted(FAMILIES)), ("gemma", Method.FULL)]
)
def test_a_model_with_its_kernels_has_the_loss_and_the_gradient_of_its_own_code(family: str, method: Method) -> None:
    setup, heard = planned(family, method, gradient_checkpointing=method is Method.FULL), Heard()
    loaded = loaded_for(family, setup)
    drawn = torch.get_rng_state()
    with liger_in_torch():
        assert proved_kernels(loaded, setup, heard) == setup
    assert heard.reports == []
    assert torch.equal(torch.get_rng_state(), drawn), "what is drawn next is the same with and without"


def test_in_bfloat16_they_agree_within_the_proofs_tolerance() -> None:
    setup, heard = planned("llama", dtype="bfloat16", gradient_checkpointing=True, lora_dropout=0.1), Heard()
    with liger_in_torch():
        assert proved_kernels(loaded_for("llama", setup), setup, heard) == setup


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_they_are_for_the_families_that_the_planner_counts_them_for(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY))
    counted = planned(family)
    nothing = replace(counted, **dict.fromkeys(SWITCHES, False))
    for switch in SWITCHES:
        found = fuse(model, replace(nothing, **{switch: True}))
        assert bool(found) is getattr(counted, switch), switch


def test_which_family_has_which_kernel() -> None:
    everything = list(SWITCHES)
    fewer = {
        "phi3": ["fused_norms", "fused_activation"],  # rotates a part of each head
        "olmo2": ["fused_norms", "fused_activation"],  # rotates in float32
        # Experts are one fused parameter, whose activation has no module.
        **{family: ["fused_norms", "fused_rotary"] for family in ("mixtral", "olmoe", "qwen3_moe")},
    }
    assert {family: switches_of(planned(family)) for family in FAMILIES} == dict.fromkeys(FAMILIES, everything) | fewer


def test_without_liger_or_in_compiled_layers_norms_alone_are_fused() -> None:
    spec = ModelSpec.from_config({"model_type": "llama", **TINY})
    setup = setup_for(Method.LORA)
    assert switches_of(with_kernels(setup, spec, replace(GPU, has_liger=False))) == ["fused_norms"]
    assert switches_of(with_kernels(replace(setup, torch_compile=True), spec, GPU)) == ["fused_norms"]
    gemma = ModelSpec.from_config({"model_type": "gemma", **TINY})
    assert switches_of(with_kernels(setup, gemma, replace(GPU, has_liger=False))) == []
    odd = ModelSpec.from_config({"model_type": "llama", **TINY, "hidden_act": "relu"})
    assert "fused_activation" not in switches_of(with_kernels(setup, odd, GPU))


def test_gemmas_first_configurations_mean_the_approximation_that_the_kernel_has() -> None:
    spec = ModelSpec.from_config({"model_type": "gemma", **TINY, "hidden_act": "gelu"})
    assert AutoConfig.for_model("gemma", **TINY, hidden_act="gelu").hidden_act == spec.activation
    assert with_kernels(setup_for(Method.LORA), spec, GPU).fused_activation
    exact = ModelSpec.from_config({"model_type": "llama", **TINY, "hidden_act": "gelu"})
    assert not with_kernels(setup_for(Method.LORA), exact, GPU).fused_activation


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("trained", [False, True])
def test_torchs_norm_is_llamas(dtype: torch.dtype, tolerance: float, trained: bool) -> None:
    torch.manual_seed(0)
    plain = LlamaRMSNorm(48).to(dtype).requires_grad_(trained)
    torch.nn.init.uniform_(plain.weight, 0.5, 2.0)
    inputs, gradient = (torch.randn(3, 7, 48).to(dtype) for _ in range(2))
    found = []
    for fused in (False, True):
        assert fuse(plain, setup_for(Method.LORA, fused_norms=fused)) == int(fused)
        leaf = inputs.clone().requires_grad_()
        output = plain(leaf)
        output.backward(gradient)
        found.append([output.detach(), leaf.grad, plain.weight.grad])
        plain.weight.grad = None
    for theirs, ours in zip(*found, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def missing(*_arguments: object) -> torch.Tensor:
    raise ModuleNotFoundError("No module named 'liger_kernel'\nand a long backtrace")


WRONG: list[tuple[str, dict[str, Callable[..., Any]], str]] = [
    ("fused_rotary", {"rotate": missing}, "cannot run on this device (No module named 'liger_kernel')"),
    ("fused_rotary", {"rotate": lambda query, key, *_: (query, key)}, "is wrong on this device: the "),
    ("fused_activation", {"silu_and_multiply": missing}, "cannot run on this device"),
    ("fused_activation", {"silu_and_multiply": lambda gate, up: functional.relu(gate) * up}, "is wrong on this device"),
    (
        "fused_activation",  # the loss is right, and what is learned is not
        {"silu_and_multiply": lambda gate, up: (functional.silu(gate) * up).detach() + 0 * up},
        "norm of the gradient",
    ),
]


@pytest.mark.parametrize(("switch", "kernel", "said"), WRONG)
def test_a_run_goes_on_without_a_kernel_that_fails_and_says_so(
    switch: str, kernel: dict[str, Callable[..., Any]], said: str
) -> None:
    setup, heard = planned("llama"), Heard()
    loaded = loaded_for("llama", setup)
    with liger_in_torch(**kernel):
        in_force = proved_kernels(loaded, setup, heard)
        assert in_force == replace(setup, **{switch: False})
        (report,) = heard.reports
        assert said in getattr(report, "message", "")
        # What is left is sound, and nothing of the failed kernel is.
        assert proved_kernels(loaded, in_force, heard) == in_force
    assert len(heard.reports) == 1
    own = {type(module).__name__ for module in loaded.causal_model.modules() if "forward" in vars(module)}
    assert ("LlamaAttention" in own, "LlamaMLP" in own) == (switch != "fused_rotary", switch != "fused_activation")
    assert all(parameter.grad is None for _, parameter in loaded.parameters)


def test_a_norm_that_is_wrong_is_taken_off() -> None:
    setup, heard = setup_for(Method.LORA, fused_norms=True, dtype="float32"), Heard()
    with patch.object(functional, "rms_norm", lambda inputs, _shape, weight, _epsilon: inputs * weight):
        assert proved_kernels(loaded_for("llama", setup), setup, heard) == replace(setup, fused_norms=False)
    assert "The fused RMSNorm is wrong on this device" in getattr(heard.reports[0], "message", "")


def test_memory_that_runs_out_in_the_proof_is_not_the_kernels_fault() -> None:
    def full(*_arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    setup = planned("llama")
    with liger_in_torch(silu_and_multiply=full), pytest.raises(torch.OutOfMemoryError):
        proved_kernels(loaded_for("llama", setup), setup, Heard())


@pytest.mark.skipif(
    find_spec("liger_kernel") is None or find_spec("triton") is None,
    reason="Liger's kernels are not installed: pip install 'tunewright[gpu]'",
)
def test_ligers_own_kernels_compute_the_same_under_tritons_interpreter() -> None:
    command = [sys.executable, "-m", "tests.unit.training.liger_interpreted"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["silu", "gelu", "halves", "rotary", "norm"]), done.stderr
