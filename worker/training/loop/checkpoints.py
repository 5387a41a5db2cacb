"""Checkpoints that are whole or not there: written beside, synced, renamed, and proven by hashes when read.

A checkpoint is a directory `step-00000042` with the trained parameters (`weights.safetensors`, with what adapters
started from where that decides the result; of full fine-tuning `model.safetensors`, as transformers names it),
`optimizer.pt`, `state.json`, what makes it load elsewhere (worker/training/export/portable.py) and `manifest.json`
(SHA-256 of all others). Data order, schedule and random numbers are functions of the seed and the step, so the step is
all there is to keep of them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from worker.training.export.sampling import Answer
from worker.training.loop.loss_scale import LossScale
from worker.training.memory import is_out_of_memory
from worker.training.metrics import MetricsRow, best_evaluation

KEPT = 2
FINGERPRINT = "2:"  # begins those made as worker/training/loop/resuming.py makes them now
_MANIFEST = "manifest.json"
_WEIGHTS, _MODEL = "weights.safetensors", "model.safetensors"
_OPTIMIZER = "optimizer.pt"
_STATE = "state.json"
_UNFINISHED = ".unfinished"
_DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading one that was cut off or changed raises


class CheckpointError(Exception):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands, apart from tensors."""

    fingerprint: str  # of everything that decides the result; a checkpoint of another run is not resumed
    step: int = 0  # optimizer steps done
    tokens: int = 0  # non-padding tokens processed
    skipped_in_a_row: int = 0  # steps whose loss or gradient was not finite
    loss_scale: LossScale = field(default_factory=LossScale)  # for the next step
    rows: tuple[MetricsRow, ...] = ()
    answers_before: tuple[Answer, ...] | None = field(default=None)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found whole. Its tensors are read when they are asked for, onto the CPU."""

    path: Path
    state: RunState

    def weights(self) -> Mapping[str, torch.Tensor]:
        """The trained parameters by name."""
        return load_file(self.path / (_MODEL if (self.path / _MODEL).exists() else _WEIGHTS))

    def optimizer(self) -> dict[str, Any]:
        """The optimizer's state dict."""
        state: dict[str, Any] = torch.load(self.path / _OPTIMIZER, weights_only=True, map_location="cpu")
        return state


def write_checkpoint(
    directory: Path,
    state: RunState,
    weights: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, object],
    *,
    is_model: bool = False,
    accompany: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write a checkpoint and keep the newest two and that of the best evaluation. Returns its path.

    `is_model`: the weights are a whole model's. `accompany` writes into the directory what makes it load elsewhere.

    Raises CheckpointError where the disk refuses, what was there before being as it was, and the device's
    out-of-memory error.
    """
    target = directory / _name(state.step)
    unfinished = directory / (target.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        accompany(unfinished)
        _save_weights(unfinished / (_MODEL if is_model else _WEIGHTS), weights)
        _write(unfinished, state, optimizer)
    except (OSError, SafetensorError, RuntimeError) as error:  # the two libraries have errors of their own for a disk
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_out_of_memory(error):
            raise
        raise CheckpointError(str(error).strip().partition("\n")[0]) from error
    shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
    unfinished.rename(target)
    _sync(directory)
    best = best_evaluation(state.rows)
    for stale in _newest_first(directory)[KEPT:]:
        if best is None or stale.name != _name(best.step):
            shutil.rmtree(stale, ignore_errors=True)
    return target


def _save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _write(directory: Path, state: RunState, optimizer: Mapping[str, object]) -> None:
    """What is beside the weights, and the hashes of everything."""
    torch.save(dict(optimizer), directory / _OPTIMIZER)
    (directory / _STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    files = sorted(directory.iterdir())
    hashes = {path.name: _sha256(path) for path in files}
    (directory / _MANIFEST).write_text(json.dumps(hashes, indent=2), encoding="utf-8")
    for path in (*files, directory / _MANIFEST):
        _sync(path)
    _sync(directory)


def newest_checkpoint(directory: Path, fingerprint: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of this run, and a sentence for each newer one that had to be passed over."""
    complaints = []
    if not directory.is_dir():
        return None, []
    for leftover in directory.glob(f"*{_UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in _newest_first(directory):
        try:
            checkpoint = _read(path)
        except _DAMAGE as error:
            complaints.append(f"Checkpoint {path.name} is damaged ({error}); an earlier one is used.")
            continue
        if _is_of(checkpoint.state, fingerprint):
            return checkpoint, complaints
        complaints.append(f"Checkpoint {path.name} belongs to another plan; it is not used.")
    return None, complaints


def checkpoint_of(directory: Path, step: int, fingerprint: str) -> Checkpoint | None:
    """The checkpoint of one step of this run, if it is there and whole."""
    try:
        checkpoint = _read(directory / _name(step))
    except _DAMAGE:
        return None
    return checkpoint if _is_of(checkpoint.state, fingerprint) else None


def _is_of(state: RunState, fingerprint: str) -> bool:
    """Whether it is this run's: those of an earlier release are, since a job's plan, data and model are frozen."""
    return state.fingerprint == fingerprint or not state.fingerprint.startswith(FINGERPRINT)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(directory: Path) -> list[Path]:
    found = (path for path in directory.glob("step-*") if path.is_dir() and not path.name.endswith(_UNFINISHED))
    return sorted(found, reverse=True)


def _read(path: Path) -> Checkpoint:
    hashes = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    for name in {_OPTIMIZER, _STATE, *hashes}:
        if _sha256(path / name) != hashes[name]:
            raise ValueError(f"{name} is not what was written")
    data = json.loads((path / _STATE).read_text(encoding="utf-8"))
    data["loss_scale"] = LossScale(**data["loss_scale"])
    data["rows"] = tuple(MetricsRow.of(row) for row in data["rows"])
    if data["answers_before"] is not None:
        data["answers_before"] = tuple(Answer(**answer) for answer in data["answers_before"])
    return Checkpoint(path, RunState(**data))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
