"""Runs in float16, for GPUs without bfloat16: the loss is scaled, overflows are taken again, nothing is skipped."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import TrainingError
from planner.setup import Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import Finished, request_for, run_child, setup_for
from worker.protocol import CheckpointReport, ErrorReport, MetricsReport, ResultReport
from worker.training.loop.checkpoints import RunState, newest_checkpoint, write_checkpoint
from worker.training.loop.loss_scale import GROWTH_INTERVAL, INITIAL, LARGEST, LossScale, unscaled_norm
from worker.training.model.cross_entropy import LogitTransform, linear_cross_entropy
from worker.training.model.loading import load_for_training

CPU = torch.device("cpu")


def curves(finished: Finished) -> tuple[list[float], list[float]]:
    assert finished.of(ErrorReport) == []
    steps = [report for report in finished.of(MetricsReport) if report.train_loss is not None]
    return [report.train_loss or 0.0 for report in steps], [report.grad_norm or 0.0 for report in steps]


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_the_curves_are_those_of_float32(conversations: Path, tmp_path: Path, method: Method) -> None:
    curve = {}
    for dtype in ("float16", "float32"):
        model = make_tiny_model(tmp_path / dtype, dtype=dtype)
        setup = setup_for(method, dtype=dtype)
        finished = run_child(request_for(model, conversations, tmp_path / f"run-{dtype}", setup, learning_rate=5e-3))
        curve[dtype] = curves(finished)
        (result,) = finished.of(ResultReport)
        assert result.steps == 10
        assert finished.of(CheckpointReport)[-1].step == 10
    for half, single in zip(curve["float16"], curve["float32"], strict=True):
        assert half == pytest.approx(single, rel=2e-2)


def test_gradients_below_float16s_range_survive_the_scale() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 64, bias=False).requires_grad_(False)
    hidden, labels = torch.randn(8, 16), torch.randint(0, 64, (8,))
    normaliser = 1e6  # gradients of about 1e-7: the smallest numbers of float16 are multiples of 6e-8

    def gradient(dtype: torch.dtype, scale: float) -> torch.Tensor:
        inputs = hidden.to(dtype, copy=True).requires_grad_()
        loss, _ = linear_cross_entropy(inputs, deepcopy(head).to(dtype), labels, normaliser / scale, LogitTransform())
        loss.backward()
        assert inputs.grad is not None
        return inputs.grad.float() / scale

    exact = gradient(torch.float32, 1.0)
    lost, kept = (float((gradient(torch.float16, s) - exact).norm() / exact.norm()) for s in (1.0, INITIAL))
    assert kept < 5e-3 < 5e-2 < lost


def test_an_overflow_halves_the_scale_and_steps_without_one_double_it() -> None:
    assert LossScale.of("bfloat16") == LossScale.of("float32") == LossScale() == LossScale().after_step()
    start = LossScale.of("float16")
    assert (start.value, start.halved().value, start.halved().clean_steps) == (INITIAL, INITIAL / 2, 0)
    assert not LossScale(1.0).can_shrink
    almost = replace(start, clean_steps=GROWTH_INTERVAL - 2)
    assert almost.after_step().value == INITIAL
    assert almost.after_step().after_step() == LossScale(2 * INITIAL)
    assert LossScale(LARGEST, GROWTH_INTERVAL - 1).after_step().value == LARGEST


def test_clipping_and_reports_see_the_gradient_itself() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 3.0 * 1024)
    assert float(unscaled_norm([("weight", weight)], LossScale(1024.0))) == pytest.approx(6.0)
    torch.testing.assert_close(weight.grad, torch.full((4,), 3.0))


@pytest.mark.usefixtures("fork_server")
def test_a_step_that_overflows_is_taken_again(conversations: Path, tmp_path: Path) -> None:
    """The output projection makes gradients of thousands: at the initial scale they leave float16, at less they fit."""
    model = make_tiny_model(tmp_path / "model", dtype="float16", tie_word_embeddings=False)
    enlarge_head(model, 30.0)
    request = request_for(model, conversations, tmp_path / "run", setup_for(Method.LORA, dtype="float16"))
    finished = run_child(request)
    losses, _ = curves(finished)
    assert len(losses) == 10, "no step was skipped"
    checkpoint, _ = newest_checkpoint(tmp_path / "run" / "checkpoints", finished_fingerprint(tmp_path / "run"))
    assert checkpoint is not None
    assert 1.0 <= checkpoint.state.loss_scale.value < INITIAL
    assert checkpoint.state.skipped_in_a_row == 0


def test_the_scale_is_kept_in_checkpoints(tmp_path: Path) -> None:
    state = RunState("plan", step=3, loss_scale=LossScale(512.0, 17))
    write_checkpoint(tmp_path, state, {"weight": torch.zeros(1)}, {})
    checkpoint, _ = newest_checkpoint(tmp_path, "plan")
    assert checkpoint is not None
    assert checkpoint.state.loss_scale == LossScale(512.0, 17)


def test_whole_weights_and_half_adapters_are_refused(tiny_model: Path) -> None:
    half = setup_for(Method.LORA, dtype="float16", adapter_dtype="float16")
    for setup in (setup_for(Method.FULL, dtype="float16"), half):
        with pytest.raises(TrainingError, match="only adapters in float32"):
            load_for_training(tiny_model, setup, 0, CPU)


def enlarge_head(model: Path, factor: float) -> None:
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] *= factor
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def finished_fingerprint(run: Path) -> str:
    newest = max((run / "checkpoints").glob("step-*"))
    return str(json.loads((newest / "state.json").read_text())["fingerprint"])
