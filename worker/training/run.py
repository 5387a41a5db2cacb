"""The state of one run, as its phases share it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from core.datasets.encoding import Encoder
from worker.protocol import MetricsReport, RunRequest
from worker.training.batches import Layout
from worker.training.checkpoints import MetricsRow, RunState
from worker.training.data import RunData
from worker.training.loading import LoadedModel
from worker.training.memory import MemoryWatch
from worker.training.optimizer import learning_rate
from worker.training.reporting import Reporter
from worker.training.stopping import StopSignal


@dataclass
class Run:
    """Everything of a run that lives longer than a phase. `state` is replaced, never changed, at step boundaries."""

    request: RunRequest
    reporter: Reporter
    stop: StopSignal
    watch: MemoryWatch
    encoder: Encoder
    data: RunData
    layout: Layout
    loaded: LoadedModel
    optimizer: torch.optim.Optimizer
    steps_per_epoch: int
    state: RunState
    saved_step: int = -1  # of the newest checkpoint

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.request.hyperparameters.n_epochs

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return Path(self.request.run_directory) / "checkpoints"

    def report_metrics(self, row: MetricsRow, grad_norm: float | None = None, tokens_per_second: float = 0.0) -> None:
        """Send a step's or an evaluation's row, with the rate that the step used."""
        done = max(0, row.step - 1)
        self.reporter.send(
            MetricsReport(
                step=row.step,
                total_steps=self.total_steps,
                train_loss=row.train_loss,
                train_mean_token_accuracy=row.train_accuracy,
                learning_rate=learning_rate(done, self.total_steps, self.request.hyperparameters),
                grad_norm=grad_norm,
                tokens_per_second=tokens_per_second,
                memory_bytes=self.watch.current_bytes(),
                trained_tokens=self.state.tokens,
                epoch=row.step / self.steps_per_epoch,
                valid_loss=row.valid_loss,
                valid_mean_token_accuracy=row.valid_mean_token_accuracy,
            )
        )
