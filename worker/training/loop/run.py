"""The state of one run, as its phases share it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.datasets.encoding import Encoder
from planner.schedule import learning_rate
from planner.setup import TrainingSetup
from worker.protocol import MetricsReport, RunRequest
from worker.training.loop.checkpoints import RunState
from worker.training.memory import MemoryWatch
from worker.training.metrics import has_stopped_improving
from worker.training.model.compiling import Compilation
from worker.training.model.loading import LoadedModel
from worker.training.objectives.objective import Objective
from worker.training.reporting import Reporter
from worker.training.stopping import StopSignal


@dataclass(frozen=True)
class Saving:
    """What checkpoints have cost this attempt."""

    count: int = 0
    seconds: float = 0.0
    last_seconds: float = 0.0
    is_refused: bool = False  # the disk refused the last one

    def and_one_more(self, seconds: float) -> "Saving":
        """With another checkpoint, written in `seconds`."""
        return Saving(self.count + 1, self.seconds + seconds, seconds)


@dataclass
class Run:
    """Everything of a run that lives longer than a phase. `state` is replaced, never changed, at step boundaries."""

    request: RunRequest
    reporter: Reporter
    stop: StopSignal
    watch: MemoryWatch
    encoder: Encoder
    objective: Objective[Any, Any]
    loaded: LoadedModel
    optimizer: torch.optim.Optimizer
    state: RunState
    setup: TrainingSetup  # in force: as requested, but for what this device cannot do
    compilation: Compilation
    saved_step: int = -1  # of the newest checkpoint
    saving: Saving = Saving()
    steps_taken: int = 0  # by this attempt
    step_seconds: float = 0.0  # that they took
    still_steps: int = 0  # in a row, up to the last one, whose gradient was exactly zero

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.objective.steps_per_epoch * self.request.hyperparameters.n_epochs

    @property
    def is_trained(self) -> bool:
        """Whether no step is left: all are done, or the validation loss has stopped falling."""
        patience = self.request.hyperparameters.early_stopping_patience
        if patience is not None and has_stopped_improving(self.state.rows, patience):
            return True
        return self.state.step == self.total_steps

    @property
    def is_as_planned(self) -> bool:
        """Whether this attempt has trained, and as it was requested: with the planned attention, layer by layer."""
        return self.steps_taken > 0 and self.setup == self.request.setup

    @property
    def expected_train_seconds(self) -> float:
        """How long all steps of the run take at the pace so far; infinity before the first."""
        return self.step_seconds / self.steps_taken * self.total_steps if self.steps_taken else float("inf")

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return Path(self.request.run_directory) / "checkpoints"

    def rate_of(self, step: int) -> float:
        """The learning rate of the step that starts after `step` steps: the schedule's, or less after a divergence."""
        scheduled = learning_rate(step, self.total_steps, self.request.hyperparameters)
        return scheduled * self.request.learning_rate_factor

    def report_metrics(
        self, metrics: Mapping[str, float], grad_norm: float | None = None, tokens_per_second: float = 0.0
    ) -> None:
        """Send the metrics of the last step or of an evaluation behind it, with the rate that the step used."""
        step = self.state.step
        done = max(0, step - 1)
        self.reporter.send(
            MetricsReport(
                step=step,
                total_steps=self.total_steps,
                metrics=dict(metrics),
                learning_rate=self.rate_of(done),
                grad_norm=grad_norm,
                tokens_per_second=tokens_per_second,
                memory_bytes=self.watch.current_bytes(),
                processed_tokens=self.state.tokens,
                epoch=step / self.objective.steps_per_epoch,
            )
        )
