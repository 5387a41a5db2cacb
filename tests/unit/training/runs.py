"""Real training children for the tests: the fork server, the pipe and the signals of production."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from core.datasets.examples import DataFormat, DataKind
from planner.devices import read_cpu
from planner.precision import dtype_on
from planner.setup import Hyperparameters, Method, Quantization, TrainingSetup
from worker.protocol import Report, RunRequest
from worker.trainer import TrainingChild

CHAT = DataFormat("messages", DataKind.CHAT, {"messages": "messages"})
R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Finished:
    """A child's reports, in order, and its exit code."""

    reports: list[Report]
    exit_code: int

    def of(self, kind: type[R]) -> list[R]:
        """The reports of one kind."""
        return [report for report in self.reports if isinstance(report, kind)]


def run_child(
    request: RunRequest, *, kill: Callable[[Report], bool] | None = None, number: int = signal.SIGKILL
) -> Finished:
    """Run a child to its end; send it signal `number` at the first report for which `kill` is true."""
    child = TrainingChild(request)
    reports: list[Report] = []
    struck = False
    try:
        with child:
            for batch in child.reports(1.0):
                for report in batch:
                    reports.append(report)
                    if kill is not None and not struck and kill(report):
                        struck = True
                        child.kill() if number == signal.SIGKILL else child.stop()
    finally:
        exit_code = child.close(30.0)
    return Finished(reports, exit_code)


def write_conversations(path: Path, rows: int = 24) -> Path:
    """A chat data set with answers of varying length."""
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            answer = " ".join(["the lamp glows"] * (1 + row * 7 % 9)) + f" {row}."
            messages = [
                {"role": "user", "content": f"Question number {row}: does it glow?"},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def setup_for(method: Method, **changes: Any) -> TrainingSetup:
    """A small plan of each method."""
    adapter: dict[str, Any] = {}
    if method is not Method.FULL:
        adapter = {"lora_rank": 4, "lora_alpha": 8, "adapter_dtype": "float32", "lora_target_modules": ("all-linear",)}
    quantization = Quantization.NF4_DOUBLE_QUANT if method is Method.QLORA else None
    base = TrainingSetup(
        method, quantization, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_length=256, **adapter
    )
    return replace(base, **changes)


def setup_here(method: Method, **changes: Any) -> TrainingSetup:
    """The same in the format that plans choose for this machine: a CPU that widens bfloat16 is slow at it."""
    return setup_for(method, **({"dtype": dtype_on(read_cpu())} | changes))


def request_for(
    model: Path, data: Path, run_directory: Path, setup: TrainingSetup, *, learning_rate: float = 1e-3, **changes: Any
) -> RunRequest:
    """A request for two epochs on the CPU, 6 rows held out."""
    settings: dict[str, Any] = {"n_epochs": 2, "learning_rate": learning_rate, "held_out_rows": 6}
    settings |= changes.pop("hyperparameters", {})
    run_directory.mkdir(parents=True, exist_ok=True)
    base = RunRequest(
        job_id="ftjob-test",
        base_model="tiny-model",
        base_model_revision="rev1",
        base_model_path=str(model),
        training_path=str(data),
        validation_path=None,
        data_format=CHAT,
        setup=setup,
        hyperparameters=Hyperparameters(**settings),
        seed=7,
        device="cpu",
        run_directory=str(run_directory),
        plan={"method": str(setup.method)},
        sample_count=2,
    )
    return replace(base, **changes)
