"""The reload check passes what is right and stops what is wrong."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.datasets.encoding import load_encoder
from core.errors import TrainingError
from planner.setup import Method
from tests.unit.training.runs import request_for, run_child, setup_for
from worker.protocol import ResultReport
from worker.training.export.verification import (
    VerificationTask,
    Verifier,
    VerifierDiedError,
    compare,
    fixed_examples,
    reloaded_loss,
)
from worker.training.objectives.supervised.rows import load_data


@pytest.mark.usefixtures("fork_server")
def test_a_wrong_adapter_is_caught(tiny_model: Path, conversations: Path, tmp_path: Path) -> None:
    setup = setup_for(Method.LORA)
    request = request_for(
        tiny_model, conversations, tmp_path, setup, learning_rate=2e-2, hyperparameters={"n_epochs": 6}
    )
    assert run_child(request).of(ResultReport)
    held_out = load_data(request, load_encoder(tiny_model)).held_out
    examples = tuple((e.input_ids, e.completion_mask) for e in fixed_examples(held_out, 8, 512))
    task = VerificationTask(str(tiny_model), str(tmp_path / "export" / "adapter"), setup, "cpu", 1, examples)
    right = reloaded_loss(task)
    compare(right, right * 1.005)
    file = tmp_path / "export" / "adapter" / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(TrainingError, match="not published") as caught:
        compare(right, reloaded_loss(task))
    assert caught.value.code == "export_verification_failed"


def test_a_verifier_that_is_killed_says_nothing_of_the_export(tmp_path: Path) -> None:
    """A crash, which the supervisor repeats: it is no TrainingError, which would end the job."""
    _, report_fd = os.pipe()
    verifier = Verifier(report_fd)
    os.kill(verifier.process_id, signal.SIGKILL)
    os.waitid(os.P_PID, verifier.process_id, os.WEXITED | os.WNOWAIT)
    task = VerificationTask(str(tmp_path), str(tmp_path), setup_for(Method.LORA), "cpu", 1, ())
    with pytest.raises(VerifierDiedError):
        verifier.loss(task)
    verifier.close()


def test_a_loss_that_is_not_a_number_is_never_equal() -> None:
    with pytest.raises(TrainingError):
        compare(1.0, float("nan"))
