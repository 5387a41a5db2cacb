"""Tokens per second and utilisation of our step: as the policy plans it, then with each option the other way.

Every variant starts from the same weights and data, so that its loss and gradient norm must agree with the planned
one's. Utilisation is by `bench.gpu_check.report.utilisation`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.gpu_check.kernels import write_kernels
from bench.gpu_check.report import AS_PLANNED, utilisation
from bench.gpu_check.session import Session, clear_device
from bench.gpu_check.shapes import Workload, config_of, missing_library, planned_setup, variants
from bench.gpu_check.training import Trainer, random_examples
from planner.devices import Device, parse_gpu, read_devices
from planner.errors import PlannerError
from planner.memory.estimate import estimate_memory
from planner.model.spec import ModelSpec
from planner.setup import Method, TrainingSetup
from planner.throughput import tokens_per_second
from worker.training.objectives.supervised.steps import epoch_steps

GIB = 1 << 30
WARM_STEPS, TIMED_STEPS = 2, 4
_CASE_SECONDS, _COMPILED_SECONDS = 15, 40  # below which one is not begun
WORKLOADS = (
    Workload("llama-3.1-8b", Method.LORA, 4096),
    Workload("llama-3.1-8b", Method.QLORA, 4096),
    Workload("llama-3.1-8b", Method.LORA, 1024, packing=False),
    Workload("qwen2.5-7b-instruct", Method.LORA, 4096),
    Workload("llama-3.2-1b-instruct", Method.FULL, 2048),
    Workload("qwen3-30b-a3b", Method.QLORA, 2048),
    Workload("qwen2.5-0.5b-instruct", Method.LORA, 2048),
)


@dataclass(frozen=True)
class Case:
    """One setup of a workload."""

    workload: Workload
    variant: str
    setup: TrainingSetup


def run(session: Session) -> None:
    """Everything but compiled layers."""
    _measure_all(session, compiled=False)


def run_compiled(session: Session) -> None:
    """Compiled layers alone: what the compiler takes is not known beforehand."""
    _measure_all(session, compiled=True)


def planning_device(session: Session) -> Device:
    """The device to plan for: the one that is here, or in a rehearsal one that is not."""
    return parse_gpu("H100-80GB") if session.rehearsing else read_devices()[0]


def _measure_all(session: Session, *, compiled: bool) -> None:
    device = planning_device(session)
    for case in _cases(session, device):
        if case.setup.torch_compile is not compiled:
            continue
        if not session.has_time(_COMPILED_SECONDS if compiled else _CASE_SECONDS):
            session.record(f"{case.workload.name}: {case.variant}", skipped="its time was up")
            continue
        with session.case(f"{case.workload.name}: {case.variant}") as figures:
            _measure(session, case, device, figures)
        clear_device()


def _cases(session: Session, device: Device) -> Iterator[Case]:
    """Every workload as planned, then their variants."""
    planned = []
    for workload in WORKLOADS:
        try:
            setup = planned_setup(workload, device, small=session.rehearsing)
        except PlannerError as error:
            session.record(f"{workload.name}: {AS_PLANNED}", skipped=str(error))
            continue
        planned.append(Case(workload, AS_PLANNED, setup))
    yield from planned
    for case in planned:
        yield from (Case(case.workload, name, setup) for name, setup in variants(case.setup))


def _measure(session: Session, case: Case, device: Device, figures: dict[str, Any]) -> None:
    config, setup = config_of(case.workload.model, small=session.rehearsing), case.setup
    spec = ModelSpec.from_config(config)
    predicted = estimate_memory(spec, setup, device)
    figures |= {
        "model": case.workload.model, "method": str(setup.method), "length": setup.max_length,
        "packing": setup.packing, "rows": setup.per_device_train_batch_size, "variant": case.variant,
        "gradient_checkpointing": setup.gradient_checkpointing, "attn_implementation": setup.attn_implementation,
        "predicted_gib": round(predicted.peak_allocated_bytes / GIB, 2),
        "predicted_tokens_per_second": round(tokens_per_second(spec, setup, device, setup.max_length)),
    }  # fmt: skip
    too_large = "the planner says that it does not fit" if predicted.required_bytes > device.free_bytes else None
    if reason := missing_library(setup, device) or too_large:
        figures["skipped"] = reason
        return
    clear_device()
    torch.compiler.reset()
    trainer = Trainer.of(config, setup, torch.device(session.device))
    wanted = (WARM_STEPS + TIMED_STEPS + 1) * setup.per_device_train_batch_size * setup.max_length
    data = random_examples(setup, int(config["vocab_size"]), wanted)
    steps = epoch_steps(data, replace(setup, gradient_accumulation_steps=1), 0, 0)
    seconds, tokens = 0.0, 0
    for number, step in enumerate(steps[: WARM_STEPS + TIMED_STEPS]):
        settle()
        started = time.monotonic()
        done = trainer.step(data, step, count_dead=number == 0)
        settle()
        taken = time.monotonic() - started
        if number == 0:
            figures |= {"loss": done.loss, "grad_norm": done.grad_norm, "without_gradient": done.without_gradient}
            figures["first_step_seconds"] = round(taken, 2)
        elif number >= WARM_STEPS:
            seconds, tokens = seconds + taken, tokens + done.tokens
    rate = tokens / seconds
    figures |= {"tokens_per_second": round(rate), "mfu": utilisation(spec, setup.method, rate, device)}
    figures["step_ms"] = round(1000 * seconds / TIMED_STEPS)
    if not session.rehearsing:
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    if case.variant == AS_PLANNED and session.has_time(2 * _CASE_SECONDS):
        title = f"{case.workload.name}, {case.variant}"
        figures |= write_kernels(session, title, lambda: trainer.step(data, steps[WARM_STEPS]))


def settle() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
