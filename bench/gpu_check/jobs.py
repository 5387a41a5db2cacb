"""Whole jobs through the service's own training child: fork server, loop, checkpoints, export and its proof.

The models are small and random; what is seen is whether every kind of job runs to its end on this device, how its
memory compares with the plan, and that what resumes, runs out of memory or is compiled does so as it should.
"""

import json
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.gpu_check.report import AS_IT_SHOULD, PROVEN
from bench.gpu_check.session import Session
from bench.gpu_check.shapes import fitted
from planner.devices import read_devices
from planner.memory.estimate import estimate_memory
from planner.model.spec import ModelSpec
from planner.precision import trains_on
from planner.setup import VARLEN_FLASH, InitLoraWeights, Method
from tests.tiny_models import make_tiny_model
from tests.unit.training.runs import Finished, request_for, run_child, setup_for, write_conversations
from worker.fork_server import warm_up
from worker.protocol import CheckpointReport, ErrorReport, MemoryReport, MessageReport, MetricsReport, ResultReport

MIB = 1 << 20
_CASE_SECONDS, _COMPILED_SECONDS = 12, 40  # below which one is not begun
_LIMIT_BYTES = 400 * MIB  # too little for any of the models
_SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
          "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8192, "max_position_embeddings": 4096}  # fmt: skip
_SMALL_SHAPE = {"max_position_embeddings": 4096}
_FAMILY_SHAPES: dict[str, dict[str, Any]] = {"qwen3_moe": {"moe_intermediate_size": 256}}


@dataclass(frozen=True)
class Job:
    """One job of the check."""

    name: str
    method: Method
    changes: dict[str, Any] = field(default_factory=dict)  # of the setup
    family: str = "llama"
    is_resumed: bool = False  # stopped behind its first checkpoint, and gone on with
    limit_bytes: int | None = None


def jobs(length: int) -> Iterator[Job]:
    """The four that matter most, then what can go wrong in its own way."""
    packed = {"packing": True, "attn_implementation": VARLEN_FLASH, "max_length": length}
    checkpointed = {**packed, "gradient_checkpointing": True}
    paged = {**packed, "optimizer": "paged_adamw_8bit"}
    yield Job("LoRA", Method.LORA, checkpointed)
    yield Job("QLoRA", Method.QLORA, checkpointed)
    yield Job("full, paged 8-bit AdamW", Method.FULL, paged)
    yield Job("QLoRA of a mixture", Method.QLORA, packed, family="qwen3_moe")
    yield Job("LoRA, padded rows", Method.LORA)
    yield Job("LoRA, resumed", Method.LORA, packed, is_resumed=True)
    yield Job("full, fused AdamW, resumed", Method.FULL, packed, is_resumed=True)
    yield Job("full, paged 8-bit AdamW, resumed", Method.FULL, paged, is_resumed=True)
    yield Job("LoRA in too little memory", Method.LORA, packed, limit_bytes=_LIMIT_BYTES)
    yield Job("DoRA from PiSSA", Method.LORA, packed | {"use_dora": True, "init_lora_weights": InitLoraWeights.PISSA})
    yield Job("LoRA, soft caps", Method.LORA, {"attn_implementation": "eager"}, family="gemma2")
    whole = {"lora_dropout": 0.1, "modules_to_save": ("embed_tokens",)}
    yield Job("LoRA with dropout, embeddings whole", Method.LORA, packed | whole)
    yield Job("LoRA, compiled", Method.LORA, packed | {"torch_compile": True})


def run(session: Session) -> None:
    """Run them while there is time."""
    with session.case("fork server") as figures:
        warm_up()
        figures["ended"] = "warm"
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
        folder = Path(directory)
        data = write_conversations(folder / "chat.jsonl", 24 if session.rehearsing else 256)
        for number, job in enumerate(jobs(256 if session.rehearsing else 2048)):
            if not trains_on(read_devices()[0], job.method):
                session.record(job.name, skipped="no GPU of this age trains whole weights")
                continue
            if not session.has_time(_COMPILED_SECONDS if job.changes.get("torch_compile") else _CASE_SECONDS):
                session.record(job.name, skipped="its time was up")
                continue
            with session.case(job.name) as figures:
                figures |= run_job(session, job, _model_of(session, folder, job.family), data, folder / str(number))


def run_job(session: Session, job: Job, model: Path, data: Path, directory: Path) -> dict[str, Any]:
    """One job from its request to its proven export, beside its plan."""
    device = read_devices()[0]
    spec = ModelSpec.from_config(json.loads((model / "config.json").read_text(encoding="utf-8")))
    setup = fitted(setup_for(job.method, **job.changes), spec, device)
    once = {"n_epochs": 1}
    request = request_for(model, data, directory, setup, hyperparameters=once, device=session.device)
    request = replace(request, memory_limit_bytes=job.limit_bytes)
    figures: dict[str, Any] = {"method": str(job.method)}
    if job.is_resumed:
        request = replace(request, checkpoint_interval_seconds=0.0)
        stopped = run_child(request, kill=lambda said: isinstance(said, CheckpointReport), number=signal.SIGTERM)
        figures["stopped_exit_code"] = stopped.exit_code
    figures |= told(run_child(request))
    if job.limit_bytes is not None and figures["said"].startswith("out_of_memory"):
        figures["ended"] = AS_IT_SHOULD
    planned = estimate_memory(spec, setup, device)
    figures |= {
        "planned_mib": planned.device_bytes // MIB,
        "planned_with_bound_mib": planned.required_bytes // MIB,
        "planned_allocated_mib": planned.peak_allocated_bytes // MIB,
    }
    return figures


def told(done: Finished) -> dict[str, Any]:
    """What a child said, in figures."""
    metrics, memory = done.of(MetricsReport), done.of(MemoryReport)
    losses = [said.train_loss for said in metrics if said.train_loss is not None]
    errors, result = done.of(ErrorReport), done.of(ResultReport)
    return {
        "ended": PROVEN if result else f"exit code {done.exit_code}",
        "steps": len(losses),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "grad_norm": next((said.grad_norm for said in metrics if said.grad_norm is not None), None),
        "step_ms": round(1000 * result[0].step_seconds, 1) if result and result[0].step_seconds else None,
        "measured_mib": max((said.device_bytes // MIB for said in memory), default=None),
        "measured_allocated_mib": max((said.peak_allocated_bytes // MIB for said in memory), default=None),
        "warnings": [said.message for said in done.of(MessageReport) if said.level != "info"],
        "said": "; ".join(f"{said.code}: {said.message}" for said in errors),
    }


def _model_of(session: Session, folder: Path, family: str) -> Path:
    path = folder / family
    if not path.exists():
        shape: dict[str, Any] = _SMALL_SHAPE if session.rehearsing else _SHAPE | _FAMILY_SHAPES.get(family, {})
        make_tiny_model(path, family=family, **shape)
    return path
