"""Predicted beside measured memory of real steps on random weights, case after case while there is time.

First shapes that tell most, the large ones before the small; then one shape with each option of the planner the other
way; then every method, length and checkpointing over the catalogue's sizes.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch

from bench.gpu_check.session import Session, clear_device
from bench.gpu_check.shapes import config_of, fitted, missing_library, setup_of, variants
from bench.gpu_check.speed import planning_device
from bench.gpu_check.training import Trainer
from planner.devices import Device
from planner.memory.estimate import estimate_memory
from planner.model.spec import ModelSpec
from planner.precision import trains_on
from planner.setup import VARLEN_FLASH, Method, TrainingSetup
from worker.training.memory import MemoryWatch

GIB = 1 << 30
STEPS = 3
_CASE_SECONDS = 12  # below which one is not begun
_SMALL = {"per_device_train_batch_size": 1, "max_length": 64}
_FLASH = {"packing": True, "attn_implementation": VARLEN_FLASH}
_CHECKPOINTED = {"gradient_checkpointing": True}
_FULL, _LORA, _QLORA = Method.FULL, Method.LORA, Method.QLORA
TELLING: tuple[tuple[str, Method, int, int, dict[str, Any]], ...] = (
    ("llama-3.1-8b", _LORA, 4, 2048, _FLASH | _CHECKPOINTED),
    ("llama-3.1-8b", _LORA, 1, 4096, _FLASH),
    ("llama-3.1-8b", _QLORA, 4, 2048, _FLASH | _CHECKPOINTED),
    ("qwen2.5-7b-instruct", _QLORA, 1, 4096, _FLASH),
    ("llama-3.2-1b-instruct", _FULL, 2, 2048, _FLASH),
    ("llama-3.1-8b", _LORA, 2, 2048, {}),
    ("llama-3.1-8b", _LORA, 8, 512, _CHECKPOINTED),
    ("qwen3-4b", _LORA, 4, 2048, _FLASH | _CHECKPOINTED),
    ("qwen2.5-0.5b-instruct", _FULL, 4, 512, _CHECKPOINTED),
    ("qwen2.5-0.5b-instruct", _LORA, 4, 512, {}),
    ("smollm2-135m-instruct", _LORA, 8, 1024, {}),
    ("gemma-2-2b-it", _LORA, 2, 2048, _CHECKPOINTED | {"attn_implementation": "eager"}),
    ("llama-3.2-3b-instruct", _FULL, 2, 2048, _FLASH | _CHECKPOINTED | {"optimizer": "paged_adamw_8bit"}),
    ("llama-3.1-8b", _LORA, 2, 4096, _FLASH | _CHECKPOINTED | {"lora_dropout": 0.05}),
    ("llama-3.1-8b", _LORA, 2, 4096, _FLASH | _CHECKPOINTED | {"use_dora": True}),
    ("llama-3.1-8b", _LORA, 2, 4096, _CHECKPOINTED | {"packing": True}),
    ("qwen3-30b-a3b", _QLORA, 1, 2048, _FLASH | _CHECKPOINTED),
    ("llama-3.3-70b-instruct", _QLORA, 1, 2048, _FLASH | _CHECKPOINTED),
    ("mixtral-8x7b-instruct-v0.1", _QLORA, 1, 1024, _CHECKPOINTED),
    ("llama-3.1-8b", _LORA, 1, 16384, _FLASH | _CHECKPOINTED),
)
GRID_MODELS = ("smollm2-135m-instruct", "qwen2.5-0.5b-instruct", "llama-3.2-1b-instruct", "llama-3.2-3b-instruct",
               "qwen2.5-7b-instruct", "llama-3.1-8b")  # fmt: skip
GRID_SHAPES = ((8, 512), (2, 2048), (1, 8192))  # rows, tokens of each


def grid(device: Device, *, small: bool = False) -> Iterator[tuple[str, TrainingSetup]]:
    """Model and setup of each case on the device, none of them twice."""

    def case(model: str, method: Method, rows: int, length: int, **more: Any) -> tuple[str, TrainingSetup]:
        setup = setup_of(method, rows, length, **more)
        return model, fitted(setup, ModelSpec.from_config(config_of(model, small=small)), device)

    telling = [case(*shape, **more) for *shape, more in TELLING if trains_on(device, shape[1])]
    if small:
        yield from dict.fromkeys((model, replace(setup, **_SMALL)) for model, setup in telling)
        return
    model, setup = telling[0]
    others = [
        (model, other)
        for _, other in variants(setup)
        if not other.torch_compile and missing_library(other, device) is None
    ]
    everything = [
        case(model, method, rows, length, gradient_checkpointing=checkpointed)
        for model, method, (rows, length), checkpointed in product(GRID_MODELS, Method, GRID_SHAPES, (False, True))
        if trains_on(device, method)
    ]
    yield from dict.fromkeys([*telling, *others, *everything])


def run(session: Session) -> None:
    """Measure case after case."""
    device = planning_device(session)
    for model, setup in grid(device, small=session.rehearsing):
        if not session.has_time(_CASE_SECONDS):
            session.record("the rest of the grid", skipped="its time was up")
            return
        with session.case(f"{model} {describe(setup)}") as figures:
            spec = ModelSpec.from_config(config_of(model, small=session.rehearsing))
            predicted = estimate_memory(spec, setup, device)
            figures |= {
                "model": model, "method": str(setup.method),
                "shape": f"{setup.per_device_train_batch_size} x {setup.max_length}", "options": options_of(setup),
                "predicted_bytes": predicted.peak_allocated_bytes, "device_bytes": predicted.device_bytes,
                "bound_bytes": predicted.bound_bytes, "accelerate_bytes": 8 * spec.parameters,
            }  # fmt: skip
            if predicted.required_bytes > device.free_bytes:
                figures["skipped"] = "the planner says that it does not fit"
                continue
            clear_device()
            figures |= measure(session, model, setup)
        clear_device()


def measure(session: Session, model: str, setup: TrainingSetup) -> dict[str, int]:
    """Peaks of three steps on the longest micro-batch, loading left out. Bytes."""
    device = torch.device(session.device)
    watch = MemoryWatch(device, None)
    trainer = Trainer.of(config_of(model, small=session.rehearsing), setup, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainer.longest_steps(STEPS)
    said = watch.report("end")
    held = {"held_bytes": said.device_bytes} if said.is_attributed else {}  # else others were on the device too
    return {"measured_bytes": said.peak_allocated_bytes, "reserved_bytes": said.peak_reserved_bytes, **held}


def describe(setup: TrainingSetup) -> str:
    """A case's name behind its model."""
    shape = f"{setup.per_device_train_batch_size} x {setup.max_length}"
    return f"{setup.method} {shape} {options_of(setup)}".strip()


def options_of(setup: TrainingSetup) -> str:
    """What of a setup differs from the plain one of its method and shape."""
    plain = setup_of(setup.method, setup.per_device_train_batch_size, setup.max_length)
    different = [
        (field.name, getattr(setup, field.name))
        for field in fields(TrainingSetup)
        if getattr(setup, field.name) != getattr(plain, field.name)
    ]
    return ", ".join(name if value is True else f"{name}={value}" for name, value in different)
