"""Fused kernels in place of a model's own code, each proved on that model and device before a run relies on it.

transformers writes norms, rotary embedding and gated activation as many small operations, each of which reads and
writes all activations and some of which keep a copy of them. torch and Liger have one kernel for each. A kernel takes
the place of `forward` in the modules whose code computes what it does (transformers copies Llama's into most families),
and of nothing else in the process.
"""

import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import GELUTanh, SiLUActivation
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama as llama
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from planner.setup import TrainingSetup
from worker.training.data.batches import MicroBatch, choose_layout, collate
from worker.training.data.tokenized import TokenizedSet
from worker.training.memory import is_out_of_memory, release
from worker.training.model import liger
from worker.training.model.forward import score
from worker.training.model.gradients import gradient_norm
from worker.training.model.loading import LoadedModel
from worker.training.reporting import Reporter

Forward = Callable[..., Any]  # of a module, which is its first argument
_TOKENS = 256  # of the example that a kernel is proved on
_TOLERANCE = 0.02  # of the loss and of the gradient's norm: bfloat16 rounds to 0.4%, and kernels in another order


@dataclass(frozen=True)
class Kernel:
    """A kernel that a plan can count on."""

    switch: str  # field of TrainingSetup
    title: str
    forward_of: Callable[[nn.Module], Forward | None]  # what takes the place of a module's forward, if anything does


def proved_kernels(loaded: LoadedModel, setup: TrainingSetup, reporter: Reporter) -> TrainingSetup:
    """The model with the kernels that `setup` names, and the setup in force: without those that cannot run on this
    device, or with which loss and gradient are not those of the model's own code. What that takes the probe measures.
    """
    wanted = [kernel for kernel in KERNELS if getattr(setup, kernel.switch)]
    if not wanted:
        return setup
    batch = _example(loaded, setup)
    with torch.random.fork_rng([loaded.device] if loaded.device.type == "cuda" else []):
        setup = _proved(loaded, setup, wanted, batch, reporter)
    release()
    return setup


def _proved(
    loaded: LoadedModel, setup: TrainingSetup, wanted: list[Kernel], batch: MicroBatch, reporter: Reporter
) -> TrainingSetup:
    expected = _loss_and_norm(loaded, batch)
    for kernel in wanted:
        fused = _fuse(loaded.causal_model, kernel)
        problem = _problem(loaded, batch, expected)
        if problem is None:
            continue
        for module in fused:
            del module.forward
        without: dict[str, Any] = {kernel.switch: False}
        setup = replace(setup, **without)
        reporter.warn(
            f"{kernel.title} {problem}. The model's own code is used instead, which gives the same result, takes more "
            "time and memory, and may lead to a smaller micro-batch."
        )
    return setup


def fuse(model: nn.Module, setup: TrainingSetup) -> int:
    """Give the model the kernels that `setup` names, unproved. Returns how many modules have one."""
    return sum(len(_fuse(model, kernel)) for kernel in KERNELS if getattr(setup, kernel.switch))


def _fuse(model: nn.Module, kernel: Kernel) -> list[nn.Module]:
    fused = []
    for module in model.modules():
        forward = kernel.forward_of(module)
        if forward is not None:
            # An instance's attribute, which modules call first; classes and other models stay as they are.
            module.forward = MethodType(forward, module)
            fused.append(module)
    return fused


def _example(loaded: LoadedModel, setup: TrainingSetup) -> MicroBatch:
    """A row of random tokens, all trained."""
    length = min(_TOKENS, setup.max_length)
    vocabulary = loaded.causal_model.config.get_text_config().vocab_size
    data = TokenizedSet(
        tokens=np.random.default_rng(0).integers(vocabulary, size=length, dtype=np.int32),
        completion_mask=np.ones(length, np.bool_),
        offsets=np.array([0, length], np.int64),
    )
    return collate(data, [(0,)], choose_layout(is_varlen=loaded.is_varlen)).to(loaded.device)


def _loss_and_norm(loaded: LoadedModel, batch: MicroBatch) -> list[float]:
    """The loss, summed so that float16 keeps small gradients, and the norm of its gradient; no trace is left."""
    torch.manual_seed(0)  # the same dropout each time
    try:
        loss, _ = score(loaded, batch, 1.0)
        loss.backward()
        values: list[float] = torch.stack([loss.detach().float(), gradient_norm(loaded.parameters).float()]).tolist()
    finally:
        for _, parameter in loaded.parameters:
            parameter.grad = None
    return values


def _problem(loaded: LoadedModel, batch: MicroBatch, expected: list[float]) -> str | None:
    """What is wrong with the model as it is now; None where nothing is. Raises what says that memory ran out."""
    try:
        found = _loss_and_norm(loaded, batch)
    except _failures() as error:
        if is_out_of_memory(error):
            raise
        return f"cannot run on this device ({str(error).strip().partition(chr(10))[0]})"
    for name, value, wanted in zip(("loss", "norm of the gradient"), found, expected, strict=True):
        if not math.isclose(value, wanted, rel_tol=_TOLERANCE):
            return f"is wrong on this device: the {name} is {value:.5g} with it and {wanted:.5g} without"
    return None


def _failures() -> tuple[type[Exception], ...]:
    """How a kernel fails that cannot be imported, compiled or launched: in the words of torch, of Python and of the C
    compiler that Triton runs, and in Triton's own."""
    known = (RuntimeError, TypeError, ValueError, AttributeError, ImportError, OSError, subprocess.SubprocessError)
    if find_spec("triton") is None:
        return known
    from triton import TritonError  # noqa: PLC0415 - not installed with every torch

    return (*known, TritonError)


def _norm(module: nn.Module) -> Forward | None:
    return _NORMS.get(_code(type(module).forward))


def _rotary(module: nn.Module) -> Forward | None:
    """An attention's own forward with another function in the place of Llama's rotary embedding."""
    forward, name = type(module).forward, llama.apply_rotary_pos_emb.__name__
    code = getattr(forward, "__code__", None)
    if code is None or name not in code.co_names:
        return None
    if _code(forward.__globals__.get(name)) != _code(llama.apply_rotary_pos_emb):
        return None
    changed = FunctionType(code, forward.__globals__ | {name: _rotate}, code.co_name, forward.__defaults__)
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


def _activation(module: nn.Module) -> Forward | None:
    code = _code(type(module).forward)
    if code == _code(Phi3MLP.forward):
        return _MLPS_OF_HALVES.get(type(module.activation_fn))
    return _MLPS.get(type(module.act_fn)) if code == _code(llama.LlamaMLP.forward) else None


def _code(function: Any) -> tuple[bytes, tuple[str, ...]] | None:
    code = getattr(function, "__code__", None)
    return (code.co_code, code.co_names) if code is not None else None


def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return liger.rotate(query, key, cos, sin)


def _llama_norm(module: llama.LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(hidden_states, tuple(module.weight.shape), module.weight, module.variance_epsilon)


def _gemma_norm(module: GemmaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    return liger.late_cast_norm(hidden_states, module.weight, module.eps, 1.0)


def _olmo2_norm(module: Olmo2RMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    return liger.late_cast_norm(hidden_states, module.weight, module.variance_epsilon, 0.0)


def _silu_mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(liger.silu_and_multiply(module.gate_proj(x), module.up_proj(x)))


def _gelu_mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(liger.gelu_and_multiply(module.gate_proj(x), module.up_proj(x)))


def _silu_mlp_of_halves(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(liger.silu_and_multiply_halves(module.gate_up_proj(x)))


_NORMS: dict[tuple[bytes, tuple[str, ...]] | None, Forward] = {
    _code(llama.LlamaRMSNorm.forward): _llama_norm,
    _code(GemmaRMSNorm.forward): _gemma_norm,
    _code(Olmo2RMSNorm.forward): _olmo2_norm,
}
_MLPS = {SiLUActivation: _silu_mlp, nn.SiLU: _silu_mlp, GELUTanh: _gelu_mlp}
_MLPS_OF_HALVES = {SiLUActivation: _silu_mlp_of_halves, nn.SiLU: _silu_mlp_of_halves}
# Which family has which: planner/kernels.py.
KERNELS = (
    Kernel("fused_norms", "The fused RMSNorm", _norm),
    Kernel("fused_rotary", "Liger's rotary embedding", _rotary),
    Kernel("fused_activation", "Liger's gated activation", _activation),
)
