"""Training that ends when the validation loss has stopped falling, and publishes the best model it had."""

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load

from planner.setup import CheckpointSelection, Method
from tests.unit.training.runs import Finished, request_for, run_child, setup_here
from worker.protocol import CheckpointReport, ErrorReport, MessageReport, Phase, PhaseReport, ResultReport, RunRequest
from worker.training.metrics import MetricsRow, best_evaluation, has_stopped_improving

PATIENCE = 3  # more evaluations than checkpoints are kept


def rows(*losses: float | None) -> list[MetricsRow]:
    """One row a step, from step 0."""
    return [MetricsRow(step, {} if loss is None else {"valid_loss": loss}) for step, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "best", "patience_that_is_over"),
    [
        ((0.5,), None, 0),  # the model before training is never published
        ((0.5, 2.0), 1, 0),
        ((3.0, 2.0, None, 1.0), 3, 0),
        ((3.0, 2.0, 2.0), 1, 1),
        ((3.0, 1.0, None, 2.0, None, 1.5), 1, 2),
        ((3.0, 1.0, 2.0, 0.5, 4.0), 3, 1),
    ],
)
def test_the_best_evaluation_and_how_long_ago_it_was(
    losses: tuple[float | None, ...], best: int | None, patience_that_is_over: int
) -> None:
    found = best_evaluation(rows(*losses))
    assert (found.step if found else None) == best
    over = [patience for patience in range(1, 6) if has_stopped_improving(rows(*losses), patience)]
    assert over == list(range(1, patience_that_is_over + 1))


@pytest.fixture
def request_to_overfit(tiny_model: Path, conversations: Path, tmp_path: Path) -> RunRequest:
    """A run whose validation rows have nothing of its training rows but their form, so that more epochs do harm."""
    validation = tmp_path / "validation.jsonl"
    turns = [[("user", "Why?"), ("assistant", f"BECAUSE {n} x {n} = {n * n}!")] for n in range(8)]
    lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in pair]}) for pair in turns]
    validation.write_text("\n".join(lines), encoding="utf-8")
    return request_for(
        tiny_model,
        conversations,
        tmp_path / "run",
        setup_here(Method.LORA),
        learning_rate=2e-2,
        hyperparameters={"n_epochs": 10, "early_stopping_patience": PATIENCE},
        validation_path=str(validation),
    )


def result_of(finished: Finished) -> ResultReport:
    assert finished.of(ErrorReport) == []
    (result,) = finished.of(ResultReport)
    return result


def archive_of(request: RunRequest, result: ResultReport) -> bytes:
    return (Path(request.run_directory) / result.files["adapter.zip"]).read_bytes()


@pytest.mark.usefixtures("fork_server")
def test_training_ends_and_the_best_model_is_published(request_to_overfit: RunRequest) -> None:
    finished = run_child(request_to_overfit)
    result = result_of(finished)
    root = Path(request_to_overfit.run_directory)
    metrics = list(csv.DictReader(io.StringIO((root / result.files["metrics.csv"]).read_text())))
    evaluated = {int(row["step"]): float(row["valid_loss"]) for row in metrics if row["valid_loss"]}
    steps = finished.of(CheckpointReport)[-1].step
    assert result.steps == steps < 60, "10 epochs of 6 steps were planned"
    assert result.published_step == steps - 6 * PATIENCE
    assert result.final_valid_loss == evaluated[result.published_step] == min(evaluated.values())
    assert any("has not fallen" in report.message for report in finished.of(MessageReport))

    with zipfile.ZipFile(io.BytesIO(archive_of(request_to_overfit, result))) as packed:
        published = load(packed.read("adapter_model.safetensors"))
        assert f"| published step | {result.published_step} |" in packed.read("README.md").decode()
    checkpoint = root / "checkpoints" / f"step-{result.published_step:08d}" / "weights.safetensors"
    trained = load(checkpoint.read_bytes())
    assert len(published) == len(trained)
    for name, tensor in trained.items():
        assert published[name.replace(".default", "")].equal(tensor)


@pytest.mark.usefixtures("fork_server")
def test_an_attempt_that_starts_behind_the_training_publishes_the_same(request_to_overfit: RunRequest) -> None:
    expected = archive_of(request_to_overfit, result_of(run_child(request_to_overfit)))
    again = run_child(request_to_overfit)
    assert archive_of(request_to_overfit, result_of(again)) == expected
    assert Phase.TRAINING not in [report.phase for report in again.of(PhaseReport)]


@pytest.mark.usefixtures("fork_server")
def test_without_the_best_checkpoint_the_last_model_is_published(request_to_overfit: RunRequest) -> None:
    root = Path(request_to_overfit.run_directory)
    best = result_of(run_child(request_to_overfit)).published_step
    (root / "checkpoints" / f"step-{best:08d}" / "weights.safetensors").write_bytes(b"torn")
    finished = run_child(request_to_overfit)
    result = result_of(finished)
    assert result.published_step == result.steps > best
    assert any("is gone" in report.message for report in finished.of(MessageReport) if report.level == "warn")


@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize("selection", list(CheckpointSelection))
def test_a_run_to_its_end_publishes_the_step_that_was_asked_for(
    request_to_overfit: RunRequest, selection: CheckpointSelection
) -> None:
    hyperparameters = replace(
        request_to_overfit.hyperparameters, n_epochs=4, early_stopping_patience=None, checkpoint_selection=selection
    )
    finished = run_child(replace(request_to_overfit, hyperparameters=hyperparameters))
    result = result_of(finished)
    evaluated = {one.step: one.valid_loss for one in finished.of(CheckpointReport) if one.valid_loss is not None}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best < result.steps, "the last step is overfitted"
    assert result.published_step == (best if selection is CheckpointSelection.BEST else result.steps)
    assert result.final_valid_loss == evaluated[result.published_step]
