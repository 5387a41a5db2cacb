"""The GPU check's own arithmetic, budget and tables, without a GPU."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from bench.gpu_check.budget import NO_GPU, STEPS, Step, allotted_seconds, run_steps
from bench.gpu_check.memory import grid
from bench.gpu_check.report import compared, sections, summary, table, utilisation
from bench.gpu_check.session import Session
from bench.gpu_check.shapes import Workload, config_of, fitted, planned_setup, setup_of, variants
from bench.gpu_check.training import Trainer, UnfitKernelError
from planner.devices import parse_gpu
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup

ROOT = Path(__file__).parents[3]
H100 = parse_gpu("H100-80GB")
LLAMA = ModelSpec.from_config(config_of("llama-3.1-8b"))


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "bench/gpu.py", "--out", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == NO_GPU == 3
    assert done.stdout == "There is no NVIDIA GPU on this machine: nothing was measured.\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("budget", [1.0, 20.0, 61.0, 150.0, 300.0, 580.0, 3600.0])
def test_no_step_takes_the_time_of_those_behind_it(budget: float) -> None:
    left, begun = budget, []
    for number, step in enumerate(STEPS):
        seconds = allotted_seconds(STEPS, number, left)
        if seconds is None:
            assert left < step.least_seconds
            continue
        assert step.least_seconds <= seconds <= left
        begun.append(step.name)
        left -= seconds
    if budget >= sum(step.least_seconds for step in STEPS):
        assert begun == [step.name for step in STEPS]
        assert left == 0  # the last takes all that is left


def test_a_step_that_fails_or_overruns_leaves_a_line_and_the_next_one_runs(tmp_path: Path) -> None:
    session = Session(tmp_path, rehearsing=True)
    steps = [
        Step("broken", "no_such_module:run", 60, 60),
        Step("dear", "session:clear_device", 1000, 1000),
    ]
    assert run_steps(session, steps, 500, None) is None
    assert run_steps(session, [Step("slow", "session:clear_device", 0, 0)], 0.001, None) is None
    broken, dear, slow = session.read()
    assert broken["exit_code"] == 1
    assert "No module named 'bench.gpu_check.no_such_module'" in broken["error"]
    assert slow["skipped"].startswith("its time was up")
    assert dear["skipped"].endswith("1000 s wanted")


def test_a_case_that_fails_is_a_result(tmp_path: Path) -> None:
    session = Session(tmp_path)
    with session.case("divides") as figures:
        figures["before"] = 1
        figures["never"] = 1 / 0
    [row] = session.read()
    assert row["before"] == 1
    assert row["error"] == "ZeroDivisionError: division by zero"


def test_utilisation_counts_what_a_frozen_base_does_not_compute() -> None:
    tokens = 10_000.0
    lora = utilisation(LLAMA, Method.LORA, tokens, H100)
    assert lora == pytest.approx(4 * 7.50e9 * tokens / 989e12, rel=0.01)
    assert utilisation(LLAMA, Method.QLORA, tokens, H100) == lora
    assert utilisation(LLAMA, Method.FULL, tokens, H100) == pytest.approx(1.5 * lora)
    mixture = ModelSpec.from_config(config_of("mixtral-8x7b-instruct-v0.1"))
    share = utilisation(mixture, Method.LORA, tokens, H100) * 989e12 / (4 * tokens)
    assert share == pytest.approx(12.75e9, rel=0.001)  # of 46.7 billion: two experts of eight


def test_every_switch_of_a_setup_is_a_variant() -> None:
    setup = planned_setup(Workload("llama-3.1-8b", Method.LORA, 4096), H100)
    found = dict(variants(setup))
    assert {"gradient_checkpointing=True", "torch_compile=True"} <= found.keys()
    for other in found.values():
        changed = [f.name for f in fields(TrainingSetup) if getattr(setup, f.name) != getattr(other, f.name)]
        assert len(changed) == 1
    assert not {name.partition("=")[0] for name in found} & {"method", "use_dora", "packing", "quantization"}


def test_the_policy_decides_what_is_timed() -> None:
    planned = planned_setup(Workload("llama-3.1-8b", Method.LORA, 4096), H100)
    assert (planned.packing, planned.attn_implementation, planned.max_length) == (True, "varlen_flash", 4096)
    assert not planned.gradient_checkpointing
    assert planned_setup(Workload("llama-3.1-8b", Method.LORA, 4096), parse_gpu("24GiB")).gradient_checkpointing


def test_memory_and_jobs_take_the_kernels_that_the_policy_takes() -> None:
    cases = list(grid(H100))
    assert len(cases) == len(set(cases))
    specs = {model: ModelSpec.from_config(config_of(model)) for model, _ in cases}
    planned = planned_setup(Workload("llama-3.1-8b", Method.LORA, 4096), H100)
    assert fitted(setup_of(Method.LORA, 1, 64), LLAMA, H100) == replace(
        setup_of(Method.LORA, 1, 64), fused_norms=planned.fused_norms, dtype=planned.dtype
    )
    other_way = [setup for model, setup in cases if setup != fitted(setup, specs[model], H100)]
    assert [setup.fused_norms for setup in other_way] == [False], "each option the other way, once"
    assert {setup.fused_norms for model, setup in cases if model == "gemma-2-2b-it"} == {False}
    turing = dict(grid(parse_gpu("T4")))
    assert {setup.dtype for setup in turing.values()} == {"float16"}
    assert "varlen_flash" not in {setup.attn_implementation for setup in turing.values()}


def test_a_kernel_that_fails_its_proof_is_a_failed_case() -> None:
    setup = replace(planned_setup(Workload("llama-3.1-8b", Method.LORA, 64), H100, small=True), dtype="float32")
    config, cpu = config_of("llama-3.1-8b", small=True), torch.device("cpu")
    norms = [m for m in Trainer.of(config, setup, cpu).loaded.model.modules() if isinstance(m, LlamaRMSNorm)]
    assert norms
    assert all("forward" in vars(norm) for norm in norms), "what is planned is what is measured"
    with (
        patch.object(functional, "rms_norm", lambda inputs, *_rest: inputs),
        pytest.raises(UnfitKernelError, match="RMSNorm is wrong on this device"),
    ):
        Trainer.of(config, setup, cpu)


def test_speed_is_compared_within_a_workload_and_with_the_best_of_trl() -> None:
    rows = {row["variant"]: row for row in compared(RESULTS)}
    assert rows["as planned"]["against"] == pytest.approx(10_000 / 8_000)
    assert rows["as planned"]["agrees"] is True
    assert rows["gradient_checkpointing=True"]["ratio"] == pytest.approx(0.8)
    assert rows["gradient_checkpointing=True"]["agrees"] is True  # a loss within 2%
    assert rows["torch_compile=True"]["agrees"] is False  # parameters without a gradient
    assert rows["trl, checkpointed"]["ratio"] == pytest.approx(0.6)


def test_the_summary_says_what_one_wants_first() -> None:
    found = summary(RESULTS)
    assert found["device"] == "NVIDIA H100"
    assert found["jobs_that_ended_as_they_should"] == "1 of 2"
    assert found["memory_mean_error"] == "5.0%, worst 5.0%"
    assert found["memory_within_the_bound"] == "0 of 1"
    assert found["tokens_a_second_against_the_best_of_trl"] == "llama lora 4096: 1.25x"
    assert found["cases_that_failed"] == 1


def test_the_page_has_a_table_for_each_step_and_names_what_was_lost() -> None:
    page = "\n\n".join(sections(RESULTS))
    for title in ("Jobs", "Memory, GiB", "Speed", "Not measured, or failed"):
        assert f"## {title}\n" in page
    assert "| jobs | QLoRA |  | RuntimeError: no kernel image |" in page
    assert "## Rates" not in page  # nothing measured, no table


def test_tables_survive_what_errors_contain() -> None:
    page = table("T", [{"a": "x|y\nz", "b": True, "c": 1 << 30}], {"A": ("a", ""), "B": ("b", ""), "C": ("c", "GiB")})
    assert page.splitlines()[-1] == "| x/y z | yes | 1.00 |"


def _speed(variant: str, rate: int, **more: Any) -> dict[str, Any]:
    same = {"loss": 11.8, "grad_norm": 2.0, "without_gradient": 0, "mfu": 0.4, "rows": 2}
    return {"step": "speed", "case": f"llama lora 4096: {variant}", "tokens_per_second": rate} | same | more


RESULTS: list[dict[str, Any]] = [
    {"step": "environment", "case": "devices", "devices": [{"name": "NVIDIA H100"}]},
    {"step": "jobs", "case": "LoRA", "method": "lora", "ended": "exported and proven", "steps": 3},
    {"step": "jobs", "case": "QLoRA", "method": "qlora", "error": "RuntimeError: no kernel image"},
    _speed("as planned", 10_000),
    _speed("gradient_checkpointing=True", 8_000, loss=11.9),
    _speed("torch_compile=True", 12_000, without_gradient=448),
    {"step": "peers", "case": "llama lora 4096: trl, not checkpointed", "tokens_per_second": 8_000},
    {"step": "peers", "case": "llama lora 4096: trl, checkpointed", "tokens_per_second": 6_000},
    {
        "step": "memory", "case": "llama", "model": "llama", "method": "lora", "predicted_bytes": 105,
        "measured_bytes": 100, "device_bytes": 110, "bound_bytes": 5, "held_bytes": 116, "accelerate_bytes": 300,
    },
]  # fmt: skip
