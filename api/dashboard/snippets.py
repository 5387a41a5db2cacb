"""How to use what a job made, ready to copy."""

from collections.abc import Sequence
from pathlib import Path

from api import pages
from core.jobs.models import Job
from planner import catalogue
from planner.plans import TrainingPlan
from planner.setup import Method

_UNPACK = ("unpack", "Unpack the download", "unpack.txt")
_OF_A_MODEL = (_UNPACK, ("transformers", "transformers", "transformers.txt"), ("vllm", "vLLM", "vllm_model.txt"))
_OF_AN_ADAPTER = (_UNPACK, ("peft", "PEFT", "peft.txt"), ("vllm", "vLLM", "vllm_adapter.txt"))


def snippets_for(job: Job, plan: TrainingPlan, models_dir: Path) -> list[tuple[str, str, str]]:
    """Id, title and text of each way to use the result."""
    is_full = plan.setup.method is Method.FULL
    values = {
        "base": _base_of(job.model, models_dir),
        "folder": "model" if is_full else "adapter",
        "is_4bit": plan.setup.method is Method.QLORA,
        "dtype": plan.setup.dtype,
        "name": job.suffix or "tuned",
        "rank": max(8, plan.setup.lora_rank or 8),
        "has_own_template": job.plan.chat_template is not None,
    }
    ways: Sequence[tuple[str, str, str]] = _OF_A_MODEL if is_full else _OF_AN_ADAPTER
    return [(way, title, pages.render_text(f"snippets/{template}", **values)) for way, title, template in ways]


def _base_of(model: str, models_dir: Path) -> str:
    """What loads the base model: its id on the hub; for one that is only here, its folder."""
    if entry := catalogue.find_model(model):
        return entry.hub_id
    folder = models_dir / model
    return str(folder.resolve()) if folder.is_dir() else model
