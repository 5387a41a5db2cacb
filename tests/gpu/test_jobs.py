"""Whole jobs on a real GPU: fork server, child, export and proof. Skipped where there is none."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.devices import read_devices
from planner.setup import VARLEN_FLASH, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import request_for, run_child, setup_for, write_conversations
from worker.fork_server import warm_up
from worker.protocol import CheckpointReport, ErrorReport, MemoryReport, MetricsReport, ResultReport

GPUS = [device for device in read_devices() if device.kind == "cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="there is no CUDA device on this machine")]

PACKED = {"packing": True, "attn_implementation": VARLEN_FLASH}
PAGED = {"optimizer": "paged_adamw_8bit"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose matrices are large enough to be paged and quantized, pinned to the first GPU by its uuid."""
    os.environ["CUDA_VISIBLE_DEVICES"] = GPUS[0].uuid  # before the fork server starts, as a worker does
    warm_up()
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    return make_tiny_model(tmp_path_factory.mktemp("gpu") / "model", num_hidden_layers=2, head_dim=64, **shape)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("method", "changes"),
    [(Method.LORA, PACKED), (Method.QLORA, PACKED), (Method.LORA, {}), (Method.FULL, {**PACKED, **PAGED})],
    ids=["lora, flash", "qlora, flash", "lora, padded", "full, paged 8-bit"],
)
def test_a_job_trains_and_proves_its_export(
    model: Path, tmp_path: Path, method: Method, changes: dict[str, Any]
) -> None:
    data = write_conversations(tmp_path / "chat.jsonl", 64)
    request = request_for(model, data, tmp_path / "run", setup_for(method, **changes), device="cuda:0")
    finished = run_child(request)
    assert finished.of(ErrorReport) == []
    (result,) = finished.of(ResultReport)
    assert result.final_train_loss is not None
    norms = [said.grad_norm for said in finished.of(MetricsReport) if said.train_loss is not None]
    assert norms
    assert all(norms)
    (end,) = [said for said in finished.of(MemoryReport) if said.when == "end"]
    assert end.peak_allocated_bytes <= end.peak_reserved_bytes <= end.device_bytes


@pytest.mark.timeout(300)
def test_a_job_that_was_stopped_goes_on_where_it_stood(model: Path, tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "chat.jsonl", 64)
    setup = setup_for(Method.FULL, **PACKED, **PAGED)
    request = request_for(model, data, tmp_path / "run", setup, device="cuda:0")
    request = replace(request, checkpoint_interval_seconds=0.0)
    stopped = run_child(request, kill=lambda said: isinstance(said, CheckpointReport), number=signal.SIGTERM)
    assert stopped.of(ResultReport) == []
    finished = run_child(request)
    (result,) = finished.of(ResultReport)
    steps = [
        said.step for said in (*stopped.of(MetricsReport), *finished.of(MetricsReport)) if said.train_loss is not None
    ]
    assert sorted(set(steps)) == list(range(1, result.steps + 1))
