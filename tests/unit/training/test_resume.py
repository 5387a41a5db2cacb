"""A killed or stopped run that is started again ends as one that was never disturbed, byte for byte."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from planner.setup import InitLoraWeights, Method
from tests.unit.training.runs import Finished, request_for, run_child, setup_here
from worker.protocol import (
    STOPPED_EXIT_CODE,
    CheckpointReport,
    ErrorReport,
    MessageReport,
    MetricsReport,
    Phase,
    PhaseReport,
    Report,
    ResultReport,
    RunRequest,
)

pytestmark = pytest.mark.usefixtures("fork_server")


def make_request(model: Path, data: Path, directory: Path, method: Method) -> RunRequest:
    dropout = 0.0 if method is Method.FULL else 0.1
    return request_for(
        model,
        data,
        directory,
        setup_here(method, lora_dropout=dropout),
        checkpoint_interval_seconds=0.0,
    )


def published(request: RunRequest, finished: Finished) -> dict[str, bytes]:
    assert finished.of(ErrorReport) == []
    (result,) = finished.of(ResultReport)
    return {name: (Path(request.run_directory) / path).read_bytes() for name, path in result.files.items()}


@pytest.fixture(scope="module")
def undisturbed(
    fork_server: None, tiny_model: Path, conversations: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Method, dict[str, bytes]]:
    results = {}
    for method in Method:
        request = make_request(tiny_model, conversations, tmp_path_factory.mktemp(method), method)
        results[method] = published(request, run_child(request))
    return results


@pytest.mark.parametrize("method", list(Method))
def test_sigkill_at_a_random_point_changes_nothing(
    undisturbed: dict[Method, dict[str, bytes]], tiny_model: Path, conversations: Path, tmp_path: Path, method: Method
) -> None:
    request = make_request(tiny_model, conversations, tmp_path, method)
    chance = random.Random(str(method))
    for _ in range(2):
        step = chance.randint(2, 9)
        delay = chance.random() * 0.05

        def strike(report: Report, step: int = step, delay: float = delay) -> bool:
            if isinstance(report, MetricsReport) and report.step >= step:
                time.sleep(delay)  # so that the kill falls anywhere in a step or in a checkpoint's writing
                return True
            return False

        killed = run_child(request, kill=strike)
        assert killed.exit_code == -signal.SIGKILL or killed.of(ResultReport)
    finished = run_child(request)
    assert published(request, finished) == undisturbed[method]


def test_a_damaged_newest_checkpoint_costs_steps_not_the_result(
    undisturbed: dict[Method, dict[str, bytes]], tiny_model: Path, conversations: Path, tmp_path: Path
) -> None:
    request = make_request(tiny_model, conversations, tmp_path, Method.LORA)
    run_child(request, kill=lambda report: isinstance(report, CheckpointReport) and report.step == 6)
    newest = max(path for path in (tmp_path / "checkpoints").glob("step-*") if path.suffix != ".unfinished")
    (newest / "weights.safetensors").write_bytes(b"torn")
    finished = run_child(request)
    assert any("damaged" in report.message for report in finished.of(MessageReport))
    assert published(request, finished) == undisturbed[Method.LORA]


@pytest.mark.parametrize("phase", list(Phase))
def test_sigterm_is_obeyed_in_every_phase(
    undisturbed: dict[Method, dict[str, bytes]], tiny_model: Path, conversations: Path, tmp_path: Path, phase: Phase
) -> None:
    request = make_request(tiny_model, conversations, tmp_path, Method.LORA)

    def strike(report: Report) -> bool:
        return isinstance(report, PhaseReport) and report.phase == phase

    stopped = run_child(request, kill=strike, number=signal.SIGTERM)
    assert stopped.exit_code == STOPPED_EXIT_CODE
    assert stopped.of(PhaseReport)[-1].phase == phase, "no further phase begins"
    finished = run_child(request)
    assert finished.exit_code == 0
    assert published(request, finished) == undisturbed[Method.LORA]


def test_sigterm_leaves_a_checkpoint_of_the_last_whole_step(
    tiny_model: Path, conversations: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    request = replace(
        make_request(tiny_model, conversations, tmp_path, Method.LORA), checkpoint_interval_seconds=3600.0
    )
    stopped = run_child(request, kill=lambda r: isinstance(r, MetricsReport) and r.step == 3, number=signal.SIGTERM)
    assert stopped.exit_code == STOPPED_EXIT_CODE
    last_step = max(report.step for report in stopped.of(MetricsReport))
    assert stopped.of(CheckpointReport)[-1].step == last_step
    resumed = run_child(request)
    assert any(f"step {last_step}" in report.message for report in resumed.of(MessageReport))
    assert min(report.step for report in resumed.of(MetricsReport)) == last_step + 1


@pytest.mark.parametrize(
    "changes", [{"init_lora_weights": InitLoraWeights.PISSA, "use_dora": True}, {"modules_to_save": ("embed_tokens",)}]
)
def test_a_killed_run_of_a_variant_ends_as_one_that_was_not(
    tiny_model: Path, conversations: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    setup = setup_here(Method.QLORA, lora_dropout=0.1, **changes)
    results = []
    for name in ("undisturbed", "killed"):
        request = request_for(tiny_model, conversations, tmp_path / name, setup, checkpoint_interval_seconds=0.0)
        if name == "killed":
            killed = run_child(request, kill=lambda report: isinstance(report, CheckpointReport) and report.step == 4)
            assert killed.exit_code == -signal.SIGKILL
        finished = run_child(request)
        assert (name == "killed") == any("Resumed" in report.message for report in finished.of(MessageReport))
        results.append(published(request, finished))
    assert results[0] == results[1]
