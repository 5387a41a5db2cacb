"""Our own training step on random weights: the loop's loading, layout, loss, clipping and optimizer, without a job."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu_check.shapes import example_lengths
from bench.random_weights import load_random
from planner.setup import Hyperparameters, TrainingSetup
from worker.protocol import MessageReport, Report
from worker.training.data.batches import Layout, choose_layout
from worker.training.data.tokenized import TokenizedSet
from worker.training.libraries import quiet
from worker.training.loop.loss_scale import LossScale, unscaled_norm
from worker.training.loop.optimizer import build_optimizer
from worker.training.model.compiling import compile_layers
from worker.training.model.flash import proved_attention
from worker.training.model.forward import score
from worker.training.model.fused import proved_kernels
from worker.training.model.gradients import clip_gradients, gradient_norm
from worker.training.model.loading import LoadedModel
from worker.training.objectives.supervised.objective import Supervised
from worker.training.objectives.supervised.steps import Step, micro_batches, step_tokens
from worker.training.reporting import Reporter

HYPERPARAMETERS = Hyperparameters(n_epochs=1, learning_rate=2e-4)
_START_DEVIATION = 0.01  # of what starts at zero


class UnfitKernelError(RuntimeError):
    """Raised where a kernel fails its proof, for which a run would train without it."""


class Complaints(Reporter):
    """Keeps what a run would warn of."""

    def __init__(self) -> None:
        """It reports to nobody."""
        self.messages: list[str] = []

    def send(self, report: Report) -> None:
        """Keep a sentence."""
        if isinstance(report, MessageReport):
            self.messages.append(report.message)


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step did."""

    tokens: int  # padding excluded
    loss: float
    grad_norm: float
    without_gradient: int  # trained parameters that got none, or only zeros


@dataclass
class Trainer:
    """A random model with its optimizer, as the loop holds them."""

    setup: TrainingSetup
    loaded: LoadedModel
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale

    @classmethod
    def of(cls, config: Mapping[str, Any], setup: TrainingSetup, device: torch.device) -> "Trainer":
        """The same weights for every setup of a model. LoRA's B starts at zero and A's gradient with it: here both
        start at random, so that every gradient can be seen. Raises UnfitKernelError where a run would do without one
        of the setup's kernels."""
        quiet()
        torch.manual_seed(0)
        complaints = Complaints()
        proved = proved_attention(setup, config, device, complaints)
        loaded = load_random(config, setup, device)
        proved = proved_kernels(loaded, proved, complaints)
        if proved != setup:
            raise UnfitKernelError(" ".join(complaints.messages))
        for _, parameter in loaded.parameters:
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=_START_DEVIATION)
        if setup.torch_compile:
            compile_layers(loaded, Path(tempfile.mkdtemp()) / "compiled")
        optimizer = build_optimizer(loaded.parameters, setup, HYPERPARAMETERS)
        return cls(setup, loaded, optimizer, LossScale.of(setup.dtype))

    @property
    def layout(self) -> Layout:
        """As the loop chooses it."""
        return choose_layout(is_varlen=self.loaded.is_varlen)

    def step(self, data: TokenizedSet, step: Step, *, count_dead: bool = False) -> StepFigures:
        """`worker.training.loop.recipe.optimizer_step` without its reports."""
        tokens, trained = step_tokens(data, step)
        while True:
            loss, norm = self._gradients(data, step, trained)
            values = torch.stack([loss, norm.float()]).tolist()  # waits for the device, once a step
            if math.isfinite(values[1]) or not self.loss_scale.can_shrink:
                break
            self.optimizer.zero_grad(set_to_none=True)
            self.loss_scale = self.loss_scale.halved()
        dead = self._without_gradient() if count_dead else 0
        self._update(norm)
        return StepFigures(tokens, values[0], values[1], dead)

    def _gradients(self, data: TokenizedSet, step: Step, trained: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's loss and its gradients' norm, both on the device."""
        total, scale = torch.zeros((), device=self.loaded.device), self.loss_scale.value
        for batch in micro_batches(data, step, self.setup, self.layout):
            loss, _ = score(self.loaded, batch.to(self.loaded.device), trained / scale)
            loss.backward()
            total += loss.detach() / scale
        return total, unscaled_norm(self.loaded.parameters, self.loss_scale)

    def longest_steps(self, count: int) -> None:
        """Steps on the longest micro-batch that the setup allows: those whose memory is predicted."""
        batch = Supervised.full_micro_batch(self.setup, self.layout).to(self.loaded.device)
        for _ in range(count):
            loss, _hits = score(self.loaded, batch, batch.scored)
            loss.backward()
            self._update(gradient_norm(self.loaded.parameters))

    def _update(self, norm: torch.Tensor) -> None:
        clip_gradients(self.loaded.parameters, HYPERPARAMETERS.max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _without_gradient(self) -> int:
        return sum(p.grad is None or not bool(p.grad.any()) for _, p in self.loaded.parameters)


def random_examples(setup: TrainingSetup, vocabulary: int, tokens: int) -> TokenizedSet:
    """Examples of random tokens from short to a whole row, `tokens` of them and more, all trained."""
    mean = tokens / sum(example_lengths(1000, setup.max_length))
    lengths = example_lengths(max(16, int(1000 * mean) + 1), setup.max_length)
    random = np.random.default_rng(0)
    total = sum(lengths)
    return TokenizedSet(
        tokens=random.integers(vocabulary // 10, vocabulary * 9 // 10, total).astype(np.int32),
        completion_mask=np.ones(total, np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
