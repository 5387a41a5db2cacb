"""A checkpoint is whole, or it is not used."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worker.training.export.sampling import Answer
from worker.training.loop.checkpoints import FINGERPRINT, RunState, newest_checkpoint, write_checkpoint
from worker.training.metrics import MetricsRow

PLAN = FINGERPRINT + "plan"
STATE = RunState(
    PLAN,
    step=4,
    tokens=99,
    rows=(MetricsRow(4, {"train_loss": 1.5, "train_mean_token_accuracy": 0.5}),),
    answers_before=(Answer("hi", 1, True),),
)
WEIGHTS = {"weight": torch.arange(6.0)}
OPTIMIZER: dict[str, object] = {"state": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(6)}}, "param_groups": []}


def write(directory: Path, step: int) -> Path:
    return write_checkpoint(directory, replace(STATE, step=step), WEIGHTS, OPTIMIZER)


def truncate(path: Path) -> None:
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    file = path / "optimizer.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change_the_step(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace('"tokens": 99', '"tokens": 0'))


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 4)
    checkpoint, complaints = newest_checkpoint(tmp_path, PLAN)
    assert checkpoint is not None
    assert checkpoint.state == STATE
    assert torch.equal(checkpoint.weights()["weight"], WEIGHTS["weight"])
    assert complaints == []


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, change_the_step, lose_the_manifest])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write(tmp_path, 4)
    damage(write(tmp_path, 8))
    checkpoint, complaints = newest_checkpoint(tmp_path, PLAN)
    assert checkpoint is not None
    assert checkpoint.state.step == 4
    assert "step-00000008 is damaged" in complaints[0]


def test_two_are_kept_and_leftovers_are_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / "step-00000009.unfinished").mkdir()
    (tmp_path / "step-00000003.tar").write_bytes(b"packed by the supervisor")
    checkpoint, _ = newest_checkpoint(tmp_path, PLAN)
    assert checkpoint is not None
    assert checkpoint.state.step == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    write(tmp_path, 4)
    checkpoint, complaints = newest_checkpoint(tmp_path, FINGERPRINT + "another plan")
    assert checkpoint is None
    assert "another plan" in complaints[0]


def test_a_checkpoint_of_an_earlier_release_is_resumed(tmp_path: Path) -> None:
    state = replace(STATE, fingerprint="0" * 64)
    write_checkpoint(tmp_path, state, WEIGHTS, OPTIMIZER)
    checkpoint, complaints = newest_checkpoint(tmp_path, PLAN)
    assert checkpoint is not None
    assert (checkpoint.state, complaints) == (state, [])
