"""Saving a run at a step boundary and going back to it."""

import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from planner.options import decisive
from planner.setup import CheckpointSelection, Method
from worker.protocol import CheckpointReport, RunRequest
from worker.training.export.model_card import checkpoint_card
from worker.training.export.portable import write_portable
from worker.training.loop.checkpoints import (
    FINGERPRINT,
    Checkpoint,
    CheckpointError,
    checkpoint_of,
    newest_checkpoint,
    write_checkpoint,
)
from worker.training.loop.optimizer import load_optimizer
from worker.training.loop.run import Run
from worker.training.metrics import best_evaluation
from worker.training.objectives.objective import Objective


def find_checkpoint(current: Run) -> Checkpoint | None:
    """The newest whole checkpoint of this run, if there is one; the run then stands at its step."""
    checkpoint, complaints = newest_checkpoint(current.checkpoints, current.state.fingerprint)
    for complaint in complaints:
        current.reporter.warn(complaint)
    if checkpoint is not None:
        current.state = checkpoint.state
        current.saved_step = checkpoint.state.step
        current.reporter.say(f"Resumed from the checkpoint of step {checkpoint.state.step}.")
    return checkpoint


def restore(current: Run, checkpoint: Checkpoint) -> None:
    """Put the weights and the optimizer's state of a checkpoint in place."""
    _put_weights(current, checkpoint)
    load_optimizer(current.optimizer, checkpoint.optimizer())


def publishable(current: Run) -> int:
    """The step whose model is published, its weights in place: that of the best evaluation, or the last as asked for.

    The last one too where the checkpoint of the best is gone, which is said.
    """
    last, best = current.state.step, best_evaluation(current.state.rows)
    if best is None or best.step == last:
        return last
    if last < current.total_steps:
        current.reporter.say(
            f"Training stopped after {last} of {current.total_steps} steps: the validation loss has not fallen below "
            f"{best.valid_loss:.4f} since step {best.step}."
        )
    if current.request.hyperparameters.checkpoint_selection is CheckpointSelection.LAST:
        return last
    checkpoint = checkpoint_of(current.checkpoints, best.step, current.state.fingerprint)
    if checkpoint is None:
        current.reporter.warn(
            f"The checkpoint of step {best.step}, whose validation loss was the lowest, is gone; the model of the last "
            f"step, {last}, is published."
        )
        return last
    _put_weights(current, checkpoint)
    current.reporter.say(f"The model of step {best.step} is published: its validation loss was the lowest.")
    return best.step


def _put_weights(current: Run, checkpoint: Checkpoint) -> None:
    weights = checkpoint.weights()
    with torch.no_grad():
        for name, tensor in _kept(current).items():
            tensor.copy_(weights[name])


def save(current: Run) -> None:
    """Write a checkpoint of the last step boundary, unless it is there or nothing was trained yet.

    A disk that refuses is no reason to stop training: it is said once, and the next checkpoint tries again.
    """
    if current.state.step in (0, current.saved_step):
        return
    started, last = time.monotonic(), current.state.rows[-1]
    card = checkpoint_card(current.request, last, current.total_steps)
    try:
        path = write_checkpoint(
            current.checkpoints,
            current.state,
            _kept(current),
            current.optimizer.state_dict(),
            is_model=current.request.setup.method is Method.FULL,
            accompany=partial(write_portable, current.loaded, current.request, card),
        )
    except CheckpointError as error:
        _warn_of_refusal(current, error)
        return
    current.saved_step = current.state.step
    current.saving = current.saving.and_one_more(time.monotonic() - started)
    current.watch.check()
    current.reporter.send(
        CheckpointReport(
            step=current.state.step,
            path=str(path),
            metrics=dict(last.metrics),
        )
    )


def _kept(current: Run) -> dict[str, torch.Tensor]:
    """The tensors that the result depends on: trained ones, and what adapters started from, which another machine
    would round in another way."""
    return {**dict(current.loaded.parameters), **current.loaded.started}


def _warn_of_refusal(current: Run, error: CheckpointError) -> None:
    if not current.saving.is_refused:
        kept = f"that of step {current.saved_step} stays" if current.saved_step > 0 else "there is none yet"
        current.reporter.warn(
            f"The checkpoint of step {current.state.step} could not be written ({error}); {kept}. Training goes on, "
            "and the next one tries again: free some space on the worker's disk."
        )
    current.saving = replace(current.saving, is_refused=True)


def fingerprint(request: RunRequest, objective: Objective[Any, Any]) -> str:
    """A hash of what decides the result: a smaller micro-batch goes on with a checkpoint, another plan does not."""
    decides = [
        request.base_model,
        request.base_model_revision,
        request.seed,
        decisive(request.setup, request.hyperparameters),
        objective.sizes,
        request.chat_template,
        asdict(request.exact_match) if request.exact_match else None,
    ]
    return FINGERPRINT + hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
